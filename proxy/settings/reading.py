"""One reading of config.yaml: the frozen records that come out, and every fault in it at once."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

from proxy.config import (
    CERTIFICATE,
    PRIVATE_KEY,
    Cassettes,
    Cerbere,
    Config,
    Deadlines,
    Functions,
    Log,
    RecordsConfig,
    System,
)
from proxy.errors import ConfigError
from proxy.settings.allowances import Allowances
from proxy.settings.caching import store_of
from proxy.settings.engines import is_command, read_command
from proxy.settings.findings import Findings
from proxy.settings.presets import TEMPLATES
from proxy.settings.recording import calls_of
from proxy.settings.reporting import faults as report_faults
from proxy.settings.reporting import reports_of
from proxy.settings.schema import TAGS, validate
from proxy.settings.source import Source, read_yaml
from proxy.settings.targets import Targets
from proxy.settings.viewing import console_of, mapped_too, watched

MAKE_A_KEY = (
    "there is no master key: put `MOOLTIPROXY_KEY=…` into .env or export it; "
    """this makes a good one: python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"""
)


def read(path: str, environ: Mapping[str, str], mappers: Functions, prompters: Functions) -> Config:
    """See `proxy.config.load`."""
    return read_source(read_yaml(path), environ, mappers, prompters)


def read_source(source: Source, environ: Mapping[str, str], mappers: Functions, prompters: Functions) -> Config:
    """The configuration in a text. Raises ConfigError with all of its faults."""
    found = Findings(source, environ, *validate(source.data))
    config = _Reading(found, mappers, prompters).config()
    if found.faults:
        raise ConfigError(found.listed())
    return config


class _Reading:
    """The sections that are no part's own, and the parts together."""

    def __init__(self, found: Findings, mappers: Functions, prompters: Functions) -> None:
        self._found, self._mappers, self._prompters = found, mappers, prompters

    def config(self) -> Config:
        """The configuration, which is worth something when there are no faults now."""
        found = self._found
        commands = {name: read_command(found, name, given) for name, given in found.section("commands").items()}
        templates = self._templates()
        places = Targets(found, self._mappers, self._prompters, templates)
        targets, pools = places.read()
        system = self._system()
        console = console_of(found.section("console"))
        if console:
            mapped_too(targets, found.fault)
        records = self._records()
        for path, message in report_faults(records, targets, found.target_names):
            found.fault(path, message)
        return Config(
            system=system,
            cerbere=Cerbere(**found.section("cerbere")),
            targets=targets,
            default=places.default(),
            models=places.rules(),
            templates=templates,
            pools=pools,
            file=found.source.file,
            commands=commands,
            master_key=self._master_key(system),
            state=self._state(),
            on_state_loss=found.sound.get("on_state_loss", "allow"),
            **Allowances(found, self._mappers).read(),
            cache=store_of(found.section("cache")),
            records=watched(records, console),
            console=console,
            warnings=tuple(found.warnings),
        )

    def _templates(self) -> dict[str, dict[str, str]]:
        """The configuration's own, and the flows' where there are targets that use it."""
        found = self._found
        own = {name: {**dict.fromkeys(TAGS, ""), **tags} for name, tags in found.section("templates").items()}
        uses_flows = any(is_command(target) for target in found.section("targets").values() if isinstance(target, dict))
        return {**TEMPLATES, **own} if uses_flows else own

    def _records(self) -> RecordsConfig | None:
        given = self._found.section("records")
        kept = Cassettes(**given["cassettes"]) if "cassettes" in given else None
        for index, name in enumerate(kept.targets if kept else ()):
            if name not in self._found.target_names:
                self._found.no_target(("records", "cassettes", "targets", index), name)
        records = RecordsConfig(kept, calls_of(given), **reports_of(given))
        return records if records != RecordsConfig() else None

    def _state(self) -> str:
        state: str = self._found.sound.get("state", "memory")
        if state != "memory" and importlib.util.find_spec("redis") is None:
            self._found.fault(("state",), "needs the package redis: pip install redis")
        return state

    def _system(self) -> System:
        given = dict(self._found.section("system"))
        limits = given.pop("limits", {})
        names = {"body": "body_limit", "connections": "connections"}
        system = System(
            **{
                **given,
                "deadlines": Deadlines(**given.get("deadlines", {})),
                "log": Log(**given.get("log", {})),
                **{names[name]: limit for name, limit in limits.items()},
            }
        )
        if system.ssl:
            for file in (CERTIFICATE, PRIVATE_KEY):
                self._found.file(("system", "ssl"), file)
        if system.client_ca:
            self._found.file(("system", "client_ca"), system.client_ca)
            if not system.ssl and not self._found.is_faulty(("system", "ssl")):
                self._found.fault(("system", "client_ca"), "needs `ssl: true`")
        if any(network.prefixlen == 0 for network in system.open_to):
            self._found.warn(("system", "open_to"), "everybody can use this proxy without a key")
        return system

    def _master_key(self, system: System) -> str:
        path, given = ("system", "masterkey"), self._found.environ.get("MOOLTIPROXY_KEY")
        if system.masterkey:
            beats = " It beats MOOLTIPROXY_KEY, which is set too." if given is not None else ""
            self._found.warn(
                path, f"security: a key in a file is read by whoever reads the file; MOOLTIPROXY_KEY is better.{beats}"
            )
            return system.masterkey
        if self._found.is_faulty(path):
            return ""
        if given is None:
            self._found.fault(path, MAKE_A_KEY)
            return ""
        return self._found.variable(path, "MOOLTIPROXY_KEY")
