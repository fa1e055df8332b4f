"""`python -m main connect NAME`: the lines that point a client at this configuration.

clients.yaml has an entry for each client. No secret is ever shown: the lines take the key from $MOOLTIPROXY_KEY.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from proxy.banner import model as known_model
from proxy.config import CERTIFICATE, Config, Pool, Target
from proxy.errors import ConfigError
from proxy.settings.kinds import meant

TRUST = (
    "NODE_EXTRA_CA_CERTS",
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
)  # where clients look for more than the public authorities
UNKNOWN_MODEL = "MODEL"


def clients() -> Mapping[str, Mapping[str, Any]]:
    """Each client's name → `what` it is, and its `lines`."""
    import yaml

    found: Mapping[str, Mapping[str, Any]] = yaml.safe_load(files("proxy.workbench").joinpath("clients.yaml").read_bytes())
    return found


def listing() -> str:
    """Every client's name and what it is."""
    return "\n".join(f"{name:<16} {client['what']}" for name, client in clients().items())


def lines(name: str, config: Config, url: str, key: str, wanted: str | None = None, model: str | None = None) -> str:
    """What to type or write for the client of that name.

    url: where the proxy listens. key: a shell expression for its key. wanted: the target, else the default one. model: what the
    client shall ask for, else what the configuration says. Raises ConfigError for a name or target that there is not.
    """
    known = clients()
    if name not in known:
        raise ConfigError([f"connect: no client {name!r}{meant(name, known)}; there are {', '.join(known)}"])
    if wanted and wanted not in config.targets and wanted not in config.pools:
        names = [*config.targets, *config.pools]
        raise ConfigError([f"--target: no target {wanted!r}{meant(wanted, names) or '; there is ' + ', '.join(names)}"])
    target = config.named(wanted or config.default)
    asked = model or known_model(config, target) or UNKNOWN_MODEL
    found = any(rule.pattern == asked and rule.target == target.name for rule in config.models)
    by_header = target.name != config.default and not target.route and not found
    fields = {
        "url": url + (target.route or ""),
        "model": asked,
        "target": target.name if by_header else None,
        "open_to": None if config.system.open_to else "127.0.0.1",
    }
    what, text = known[name]["what"], known[name]["lines"]
    if by_header and "%(target)s" not in text:
        raise ConfigError([_no_header(name, target)])
    keyed = key if "MOOLTIPROXY_KEY" in text else ""
    return "\n".join([*_first(what, config, target, asked, keyed), "", *_filled(text, fields)])


def _first(what: str, config: Config, target: Target | Pool, model: str, key: str) -> list[str]:
    """What stands above every client's own lines."""
    out = [f"# {what} → target {target.name!r}"]
    if model == UNKNOWN_MODEL:
        out.append(f"# {UNKNOWN_MODEL}: as the backend calls it; /v1/models lists what there is, --model puts it in here")
    if key not in ("", "$MOOLTIPROXY_KEY"):
        out.append(f'export MOOLTIPROXY_KEY="{key}"')
    if config.system.ssl:
        out += [f"export {variable}='{Path(CERTIFICATE).resolve()}'" for variable in TRUST]
    return out


def _filled(text: str, fields: Mapping[str, str | None]) -> list[str]:
    absent = [f"%({name})s" for name, value in fields.items() if value is None]
    return [line % fields for line in text.splitlines() if not any(field in line for field in absent)]


def _no_header(name: str, target: Target | Pool) -> str:
    return (
        f"connect: {name} cannot send a `target` header. Give target {target.name!r} a `route`, or name a model for it in "
        "`models` and ask for that with --model"
    )
