"""config.yaml → records that never change; every fault at once, each with its file, line and path.

The ancestor's files load unchanged. Nothing past this file sees a raw dict of the configuration. A record is a NamedTuple,
which is defined in an eighth of the time of a dataclass, unless it holds a secret, which its repr must not show.
"""

from __future__ import annotations

import inspect
import ipaddress
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from proxy import dialects
from proxy.dialects import NOTHING
from proxy.errors import ConfigError
from proxy.settings.env import read_env_file as read_env_file

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Deadlines(NamedTuple):
    """Seconds. connect, first_byte: of a backend (first_byte: in all, until its answer begins); header, body: for a whole
    header block or body to come; idle: an unused connection."""

    connect: float = 3.05
    first_byte: float = 600.0
    header: float = 10.0
    idle: float = 75.0
    body: float = 60.0


class Log(NamedTuple):
    format: str = "text"  # text | json
    level: str = "info"
    file: str | None = None


@dataclass(frozen=True)
class System:
    """`system`: the process and its socket."""

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


class Cerbere(NamedTuple):
    max_tries: int = 3
    ban_s: float | None = None  # None: until restart
    whitelist: tuple[Network, ...] = ()
    blacklist: tuple[Network, ...] = ()
    only: tuple[Network, ...] = ()
    trusted_proxies: tuple[Network, ...] = ()


class Entry(NamedTuple):
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
class Aws:
    """How a target's requests are signed for AWS."""

    region: str
    assume_role: str | None = None  # an ARN
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)  # AWS_* of the environment and of .env


class Command(NamedTuple):
    """One of `commands`. An argument that is a tuple stands there once for each value of its placeholder."""

    name: str
    complete: tuple[str | tuple[str, ...], ...] = ()
    embed: tuple[str | tuple[str, ...], ...] = ()
    tokenize: tuple[str | tuple[str, ...], ...] = ()
    model: str | None = None
    threads: int = 4
    context: int = 4096  # tokens
    batch: int = 8
    count_tokens: bool = False
    pooling: str | None = None  # None: what the model says
    echo: bool = True  # the program repeats the prompt
    begins: str = ""  # what the answer stands behind in the output of `complete`; this and the next two only presets say
    ends: str = ""  # what a whole output of `complete` ends with
    fault: str = ""  # what stands there before an error of the program's own, which ends well all the same
    stop: tuple[str, ...] = ()
    timeout_s: float = 300.0


class Start(NamedTuple):
    """The server behind a target, which the proxy starts itself."""

    command: tuple[str, ...]
    ready: str | None = None  # a path that answers 200; None: the port can be connected
    idle_stop_s: float | None = None  # None: never
    env: Mapping[str, str] = NOTHING
    exclusive: str | None = None  # a group of which one runs at a time


class Retries(NamedTuple):
    """on: what is tried again: statuses that a backend answers, and connect, timeout, garbage (no answer at all)."""

    attempts: int = 3  # in all
    backoff_s: float = 0.2  # at most so long before the second attempt; doubled for each further one
    on: tuple[str, ...] = ("connect", "timeout", "429", "502", "503", "504", "529")


class Breaker(NamedTuple):
    failures: int = 5  # in a row
    cool_s: float = 30.0  # how long a target rests then


class Line(NamedTuple):
    """How many calls a target serves at once; how many more may wait, and how long."""

    concurrency: int
    size: int = 32
    timeout_s: float = 600.0


class Pool(NamedTuple):
    """A name for several targets."""

    name: str
    members: Mapping[str, int]  # target → its weight
    strategy: str = "round-robin"  # round-robin weighted least-busy
    route: str | None = None
    fallback: tuple[str, ...] = ()
    line: int = 0
    model: None = None  # its members have their own


class CacheRule(NamedTuple):
    """What of a target's answers is given again."""

    default: bool = False  # for a request that does not say `caching`
    ttl_s: float = 3600.0


class CacheStore(NamedTuple):
    """Where answers are kept that are given again."""

    store: str = "memory"  # memory, state, or sqlite:FILE
    max_bytes: int = 256 * 1024 * 1024


@dataclass(frozen=True)
class Target:
    """One of `targets`: a backend, and how it is spoken to."""

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
    capabilities: Mapping[str, int] = field(default_factory=dict)  # what the backend can do; see capabilities.py
    azure_api_version: str | None = None
    azure_deployment: str | None = None
    start: Start | None = None
    aws: Aws | None = None  # None: nothing is signed
    retries: Retries | None = None
    fallback: tuple[str, ...] = ()  # targets and pools
    breaker: Breaker | None = None
    keys: Mapping[str, str] = field(default_factory=dict, repr=False)  # of envkeys: the variable's name → the secret
    key_command: tuple[str, ...] = ()  # prints the key
    key_ttl_s: float = 3600.0
    queue: Line | None = None
    pace_s: float = 0.0  # between two chunks of a stream
    limits: Rates = ()
    cache: CacheRule | None = None
    secrets: set[str] = field(default_factory=set, repr=False, compare=False)  # every key that its requests have carried
    line: int = 0
    dialect_line: int = 0

    def __post_init__(self) -> None:
        self.secrets.update(filter(None, [self.key, *self.keys.values()]))

    @property
    def tries(self) -> bool:
        """Whether a call to it is more than one plain attempt."""
        return any((self.retries, self.fallback, self.breaker, self.keys, self.key_command, self.queue, self.pace_s))


class Cassettes(NamedTuple):
    """`records.cassettes`: which calls are kept whole, and where."""

    folder: str = "cassettes"
    targets: tuple[str, ...] = ()  # empty: all
    redact: tuple[str, ...] = ()  # regular expressions; what they match is not kept


@dataclass(frozen=True)
class Calls:
    """`records.calls`: the call log."""

    database: str = field(default="sqlite:///calls.db", repr=False)  # a url, which may hold a password
    bodies: bool = True
    body_limit: int = 64 * 1024  # bytes of each body
    redact: tuple[str, ...] = ()  # regular expressions; what they match is not kept
    keep_days: float | None = 90.0
    keep_bytes: int | None = None
    required: bool = False  # refuse calls that could not be kept
    user_header: str | None = None  # names a call's user


SESSION = r"[A-Za-z0-9_][A-Za-z0-9._ -]{0,99}"
SESSION_IS = "at most 100 letters, digits and any of . _ - space, no . at the beginning"


class Dataset(NamedTuple):
    """`records.dataset`: conversations as they happen."""

    folder: str = "datasets"
    session: str | None = None  # the file's name; None: the time of the start


class Submit(NamedTuple):
    """`records.submit`: where each call is posted."""

    url: str = ""
    timeout_s: float = 10.0


class Gateway(NamedTuple):
    """`records.gateway_api`: targets that serve LLM-Gateway's own endpoints; None: whichever a call would go to."""

    chat_sg: str | None = None
    chat_br: str | None = None
    image_gen: str | None = None


METRICS_PAGE = frozenset(("/metrics",))
GATEWAY_PAGES = frozenset(
    "/" + name
    for name in (
        *("chat", "chat_sg", "chat_br", "checkchat", "update_title", "update_title_openai", "metadata_check"),
        *("remove_convo", "image_gen", "history", "history_v2"),
    )
)


class RecordsConfig(NamedTuple):
    """What is kept of calls after they have ended."""

    cassettes: Cassettes | None = None
    calls: Calls | None = None
    live: bool | None = None  # the calls in flight, for the console: no key of its own
    metrics: bool | None = None  # True or None
    dataset: Dataset | None = None
    submit: Submit | None = None
    gateway: Gateway | None = None

    @property
    def pages(self) -> frozenset[str]:
        """Paths that the proxy itself answers with what it keeps."""
        return (METRICS_PAGE if self.metrics else frozenset()) | (GATEWAY_PAGES if self.gateway else frozenset())


class Console(NamedTuple):
    """`console`, once it is enabled."""

    edit: bool = False
    session_s: float = 8 * 3600.0
    presets: Mapping[str, str] = NOTHING  # name → system prompt


Rates = tuple[tuple[int, float], ...]  # each: so many in so many seconds


@dataclass(frozen=True)
class Key:
    """A person's or an app's key. Empty `targets` and `models`: all."""

    name: str
    digest: bytes = field(repr=False)  # SHA-256 of the key
    variable: str | None = None  # of the environment, where the key comes from there
    targets: tuple[str, ...] = ()
    models: tuple[str, ...] = ()  # may hold *
    limits: Rates = ()
    tokens: Rates = ()
    budget: tuple[int, str] | None = None  # millionths of a US dollar, per hour day week month year total
    concurrency: int | None = None
    expires: float | None = None  # Unix time
    console: bool = False
    tags: tuple[str, ...] = ()


class Limits(NamedTuple):
    """`limits`: of everybody together, and of single paths."""

    everyone: Rates = ()
    paths: Mapping[str, Rates] = NOTHING
    strategy: str = "moving-window"  # moving-window fixed-window


class GuardRules(NamedTuple):
    """`guard`: regular expressions, among `deny` names of functions too."""

    deny: tuple[str, ...] = ()
    redact: tuple[str, ...] = ()


class Price(NamedTuple):
    """US dollars for a million tokens, which is millionths of a dollar for one."""

    input: float
    cached: float
    output: float

    def cost(self, tokens_in: int, cached: int, tokens_out: int) -> int:
        """Millionths of a US dollar, rounded up. `cached`: those of `tokens_in` that came out of the backend's cache."""
        cached = min(cached, tokens_in)
        return math.ceil(round((tokens_in - cached) * self.input + cached * self.cached + tokens_out * self.output, 6))


class ModelRule(NamedTuple):
    """`models`: a requested name, or a pattern with `*`, and where it goes."""

    pattern: str
    target: str
    model: str | None = None  # sent instead of the client's
    line: int = 0


@dataclass(frozen=True)
class Config:
    """All of it."""

    system: System
    cerbere: Cerbere
    targets: Mapping[str, Target]
    default: str
    models: tuple[ModelRule, ...] = ()
    templates: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    file: str | None = None
    master_key: str = field(default="", repr=False)  # of system.masterkey, else MOOLTIPROXY_KEY; never empty after load()
    commands: Mapping[str, Command] = field(default_factory=dict)
    state: str = field(default="memory", repr=False)  # memory, or the url of a Redis, which may hold a password
    on_state_loss: str = "allow"  # allow refuse
    pools: Mapping[str, Pool] = field(default_factory=dict)
    keys: Mapping[str, Key] = field(default_factory=dict)
    limits: Limits | None = None
    guard: GuardRules | None = None
    prices: Mapping[str, Price] = field(default_factory=dict)
    cache: CacheStore = CacheStore()
    records: RecordsConfig | None = None
    console: Console | None = None
    warnings: tuple[str, ...] = ()  # what the banner must say: a masterkey in the file, a key in the file

    def secret_names(self) -> set[str]:
        """Environment variables that hold keys: not for the programs that the proxy starts."""
        held = {name for target in self.targets.values() for name in (target.key_name, *target.keys) if name}
        return {"MOOLTIPROXY_KEY", *held, *(key.variable for key in self.keys.values() if key.variable)}

    @property
    def traffic(self) -> bool:
        """Whether a call passes anything between the choice of its target and the backend; see traffic.py."""
        rooms = (self.pools, self.guard, self.counts, any(target.cache for target in self.targets.values()))
        return any(rooms) or any(target.tries for target in self.targets.values())

    @property
    def counts(self) -> bool:
        """Whether anything is counted or limited: requests, tokens, money."""
        return any((self.keys, self.limits, self.prices)) or any(target.limits for target in self.targets.values())

    def members(self, name: str) -> tuple[str, ...]:
        """The targets that a name stands for: a pool's members, or the target itself."""
        return tuple(self.pools[name].members) if name in self.pools else (name,)

    def named(self, name: str) -> Target | Pool:
        """A target or a pool. Raises KeyError."""
        return self.pools[name] if name in self.pools else self.targets[name]


CERTIFICATE, PRIVATE_KEY = "certificates/cert.pem", "certificates/key.pem"  # what `ssl: true` serves with
Functions = Mapping[str, object]  # the names of the user's module
LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))


def load(path: str, environ: Mapping[str, str], mappers: Functions, prompters: Functions) -> Config:
    """The configuration in that file. Raises ConfigError with all of its faults."""
    try:
        from proxy.settings.reading import read  # YAML and its validator: `--target` needs neither
    except ModuleNotFoundError as missing:
        if (missing.name or "").startswith("proxy"):
            raise
        told = f"the package {missing.name} is missing: pip install -r requirements.txt, or `make run`, which makes a .venv"
        raise ConfigError([told]) from None

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


def with_session(config: Config, session: str | None) -> Config:
    """A configuration that records conversations in that session. Raises ConfigError for what cannot be a file's name."""
    if session is not None and not re.fullmatch(SESSION, session):
        raise ConfigError([f"--session: {session!r} must be {SESSION_IS}"])
    records = config.records or RecordsConfig()
    dataset = (records.dataset or Dataset())._replace(session=session)
    return replace(config, records=records._replace(dataset=dataset))


def json_schema() -> dict[str, Any]:
    """The JSON Schema of config.yaml, for editors: `check --schema`."""
    from proxy.settings import schema

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
