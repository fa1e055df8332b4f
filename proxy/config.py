"""config.yaml → frozen dataclasses; every fault at once, each with its file, line and path.

The ancestor's files load unchanged. Nothing past this file sees a raw dict of the configuration.
"""

from __future__ import annotations

import inspect
import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from proxy import dialects
from proxy.env import read_env_file as read_env_file
from proxy.errors import ConfigError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class Deadlines:
    """Seconds. connect, first_byte: of a backend (first_byte: in all, until its answer begins); header, body: for a whole
    header block or body to come; idle: an unused connection."""

    connect: float = 3.05
    first_byte: float = 600.0
    header: float = 10.0
    idle: float = 75.0
    body: float = 60.0


@dataclass(frozen=True)
class Log:
    format: str = "text"  # text | json
    level: str = "info"
    file: str | None = None


@dataclass(frozen=True)
class System:
    host: str = "127.0.0.1"
    port: int = 8000
    timeout: float = 30.0  # seconds, a backend's silence
    deadlines: Deadlines = Deadlines()
    ssl: bool = False
    client_ca: str | None = None
    debug: bool = False
    masterkey: str | None = field(default=None, repr=False)  # as written in the file; see `master_key`
    open_to: tuple[Network, ...] = ()
    workers: int = 1
    body_limit: int = 32 * 1024 * 1024  # bytes
    connections: int = 4096
    log: Log = Log()
    watch: bool = False  # reload when one of the files changes
    local_only: bool = False  # `--target`: a local Host only, no cross-origin pages


@dataclass(frozen=True)
class Cerbere:
    max_tries: int = 3
    ban_s: float | None = None  # None: until restart
    whitelist: tuple[Network, ...] = ()
    blacklist: tuple[Network, ...] = ()
    only: tuple[Network, ...] = ()
    trusted_proxies: tuple[Network, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One endpoint: a `mapping` entry, or what `dialect` expands to. Names of functions are still names here."""

    key: str  # the path as written: /chat/completions, /v1/files/*, /models/{model}:go
    method: str | None = None  # None: any
    path: str | None = None  # upstream path; None: the key's own
    in_: tuple[str, ...] = ()
    out: tuple[str, ...] = ()
    stream: tuple[str, ...] = ()
    stream_path: str | None = None
    answer: str | None = None  # a function that answers without a backend
    before: str | None = None  # path of a first call, which makes the body of the second one
    before_in: str | None = None  # (body) → what is asked there
    before_out: str | None = None  # (answer, cfg with the body as `request`) → the body that is sent at last
    upstream_method: str | None = None  # None: the client's
    prompter: str | None = None
    template: str | None = None
    line: int = 0  # in the config file, of this entry or of the `dialect:` that it comes from
    origin: str = "mapping"  # mapping | dialect
    unsupported: bool = False  # the backend's API has no such operation: 501


@dataclass(frozen=True)
class Target:
    name: str
    url: str
    key: str | None = field(default=None, repr=False)  # the secret itself, read from envkey or key
    key_name: str | None = None  # what logs may call it: the environment variable's name, or "key"
    auth: str = "bearer"  # bearer x-api-key api-key x-goog-api-key none passthrough
    headers: Mapping[str, str] = field(default_factory=dict)
    dialect: str | None = None
    model: str | None = None
    route: str | None = None
    prompter: str | None = None
    template: str | None = None
    mapping: tuple[Entry, ...] = ()
    preserve_method: bool = False
    timeout: float | None = None  # None: system.timeout
    verify: bool | str = True
    cert: tuple[str, str] | None = None
    proxy: str | None = None
    on_loss: str = "warn"  # allow warn reject
    system_policy: str = "inline"  # inline hoist user
    azure_api_version: str | None = None
    azure_deployment: str | None = None
    secrets: set[str] = field(default_factory=set, repr=False, compare=False)  # every key that its requests have carried
    line: int = 0
    dialect_line: int = 0

    def __post_init__(self) -> None:
        if self.key:
            self.secrets.add(self.key)


@dataclass(frozen=True)
class ModelRule:
    """`models`: a requested name, or a pattern with `*`, and where it goes."""

    pattern: str
    target: str
    model: str | None = None  # sent instead of the client's
    line: int = 0


@dataclass(frozen=True)
class Config:
    system: System
    cerbere: Cerbere
    targets: Mapping[str, Target]
    default: str
    models: tuple[ModelRule, ...] = ()
    templates: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    file: str | None = None
    master_key: str = field(default="", repr=False)  # of system.masterkey, else MOOLTIPROXY_KEY; never empty after load()
    warnings: tuple[str, ...] = ()  # what the banner must say: a masterkey in the file, a key in the file


CERTIFICATE, PRIVATE_KEY = "certificates/cert.pem", "certificates/key.pem"  # what `ssl: true` serves with
Functions = Mapping[str, object]  # the names of the user's module
LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))


def load(path: str, environ: Mapping[str, str], mappers: Functions, prompters: Functions) -> Config:
    """The configuration in that file. Raises ConfigError with all of its faults."""
    from proxy.reading import read  # YAML and its validator: `--target` needs neither

    return read(path, environ, mappers, prompters)


def for_target_url(url: str, environ: Mapping[str, str]) -> Config:
    """What `--target URL` stands for: everything goes to that url with the client's own key; this machine only."""
    fault = url_fault(url)
    if fault:
        raise ConfigError([f"--target: {fault}"])
    target = Target(name="target", url=url, auth="passthrough")
    return Config(
        system=System(open_to=LOOPBACK, local_only=True),
        cerbere=Cerbere(),
        targets={target.name: target},
        default=target.name,
        master_key=environ.get("MOOLTIPROXY_KEY", ""),
    )


def json_schema() -> dict[str, Any]:
    """The JSON Schema of config.yaml, for editors: `check --schema`."""
    from proxy import schema

    return schema.json_schema()


def find_mapper(name: str, mappers: Functions) -> Callable[..., Any] | None:
    """The user's function of that name, else the built-in mapper, else None."""
    if name in mappers:
        own = mappers[name]
        return own if inspect.isfunction(own) else None
    return dialects.mapper(name)


def find_prompter(name: str, prompters: Functions) -> Callable[..., Any] | None:
    """The user's function of that name, else the built-in prompter, else None."""
    if name in prompters:
        own = prompters[name]
        return own if inspect.isfunction(own) else None
    from proxy.prompts import PROMPTERS

    return PROMPTERS.get(name)


HOST = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_.])?"
HOST_AND_PORT = re.compile(r"(\[[^\]]*\]|[^:]*)(?::(.*))?", re.DOTALL)


def url_fault(url: str, credentials: bool = False) -> str | None:
    """The first thing that is wrong with an http(s) url, without showing what may be a password."""
    scheme, found, rest = url.partition("://")
    if scheme not in ("http", "https"):
        guess = "http://" + url
        return "must begin with http:// or https://" + ("" if found or url_fault(guess) else f"; did you mean {guess!r}?")
    login, _, place = rest.partition("/")[0].rpartition("@")
    parts = HOST_AND_PORT.fullmatch(place)
    host, port = (parts[1], parts[2]) if parts else ("", None)
    faults = (
        (login and not credentials, "must hold no user and password: a key belongs into `envkey`"),
        ("?" in rest or "#" in rest, "must hold no query and no fragment (no ? and no #)"),
        (not re.fullmatch("[!-~]*", rest), "must be plain ASCII without spaces; write other bytes as %20"),
        (not host, "has no host"),
        (not re.fullmatch(rf"{HOST}|\[[0-9A-Fa-f:.]+\]", host), f"{host!r} is no host"),
        (port is not None and not _is_port(port), "the port must be a number from 1 to 65535"),
    )
    return next((message for wrong, message in faults if wrong), None)


def _is_port(port: str) -> bool:
    return bool(re.fullmatch("[0-9]{1,5}", port)) and 0 < int(port) < 65536
