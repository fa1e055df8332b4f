"""What may stand in config.yaml: one table, out of which come voluptuous's check and the JSON Schema for editors.

A room adds its section to SECTIONS. A `Kind` says both what a value must be and what an editor is told, so the two cannot
part; JSON Schema may be looser (it does not know whether a target of that name exists), never stricter.
"""

from __future__ import annotations

import re
from typing import Any

from voluptuous import Invalid, MultipleInvalid, RequiredFieldInvalid

from proxy import dialects
from proxy.settings import allowances, caching, recording, reporting, viewing
from proxy.settings.engines import COMMANDS, START
from proxy.settings.kinds import (
    ANY_TEXT,
    BIND,
    BYTES,
    FILE,
    FLAG,
    HEADER,
    MISSING,
    NETWORK,
    NOTHING,
    SECONDS,
    SECRET,
    TEXT,
    TRIMMED,
    VARIABLE,
    Field,
    Json,
    Kind,
    by_type,
    list_of,
    meant,
    must_be,
    nullable,
    number,
    one_of,
    one_or_list,
    section,
    text,
    web_address,
)
from proxy.settings.source import Path
from proxy.settings.tries import OF_TARGET, with_pools

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
ENDPOINT = rf"(?:(?:{'|'.join(METHODS)}) )?/[!-~]*"
PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}", re.ASCII)


def endpoint(key: str) -> tuple[str | None, str]:
    """A key of `mapping` as (method, path). Raises Invalid when it can match no request, or when it is unclear which."""
    method, space, path = key.rpartition(" ")
    if space and method not in METHODS:
        raise Invalid(f"must begin with / or a method and /; {method!r} is no method{meant(method, METHODS)}")
    if not path.startswith("/"):
        raise Invalid(f"must begin with /{meant(path, ['/' + path])}")
    names = PLACEHOLDER.findall(path)
    faults = (
        (not re.fullmatch("[!-~]+", path), "must be plain ASCII"),
        ("?" in path or "#" in path, "must be a path alone: a query is kept without being named here"),
        ("*" in path.removesuffix("/*"), "may hold a * only as /* at its end; one segment is {name}"),
        (set("{}") & set(PLACEHOLDER.sub("", path)), "has a { or } that is no {name}"),
        (len(set(names)) < len(names), "has the same {name} twice"),
        ("rest" in names, "must not call a {name} rest: that is what /* matches"),
    )
    wrong = next((message for fault, message in faults if fault), None)
    if wrong:
        raise Invalid(wrong)
    return method or None, path


# The tables. The template has the long version of what each means.

SYSTEM = section(
    {
        "host": (
            text(BIND, "an address or a host name without a port"),
            "Where to listen; 0.0.0.0: reachable from elsewhere",
        ),
        "port": (number("a port", 0, 65535, whole=True), "TCP port; 0 takes any free one"),
        "timeout": (SECONDS, "Seconds that a backend may be silent"),
        "deadlines": (
            section(
                {
                    "connect": (SECONDS, "Seconds to reach a backend"),
                    "first_byte": (SECONDS, "Seconds in all until a backend's answer begins"),
                    "header": (SECONDS, "Seconds for a client's whole header block"),
                    "idle": (SECONDS, "Seconds that an unused connection is kept"),
                    "body": (SECONDS, "Seconds for a client's whole body"),
                }
            ),
            "Other times, in seconds",
        ),
        "ssl": (FLAG, "Serve https with certificates/cert.pem and key.pem"),
        "client_ca": (nullable(FILE), "PEM file: clients must show a certificate that one of these has signed"),
        "debug": (FLAG, "Log requests and answers before and after mapping"),
        "masterkey": (SECRET, "The key that clients must send; better in MOOLTIPROXY_KEY"),
        "open_to": (list_of(NETWORK, "a list of networks"), "Networks that need no key"),
        "workers": (number("a whole number", 1, 256, whole=True), "Processes"),
        "limits": (
            section(
                {
                    "body": (BYTES, "Largest request body, such as 32MiB"),
                    "connections": (number("a whole number", 1, 1_000_000, whole=True), "Most connections at once, per worker"),
                }
            ),
            "What is refused as too much",
        ),
        "watch": (FLAG, "Reload when the configuration, mappers.py or prompters.py changes"),
        "log": (
            section(
                {
                    "format": (one_of(lambda: ["text", "json"]), "For people or for machines"),
                    "level": (one_of(lambda: ["debug", "info", "warning", "error"]), "The least that is logged"),
                    "file": (nullable(FILE), "Log into this file instead of standard error"),
                }
            ),
            "Logging",
        ),
    }
)
NETWORKS = list_of(NETWORK, "a list of networks")
CERBERE = section(
    {
        "max_tries": (number("a whole number", 1, 1_000_000, whole=True), "Wrong keys until an address is banned"),
        "ban_s": (nullable(SECONDS), "Seconds that a ban lasts; null: until restart"),
        "whitelist": (NETWORKS, "Never banned"),
        "blacklist": (NETWORKS, "Always refused"),
        "only": (NETWORKS, "Nobody else may connect"),
        "trusted_proxies": (NETWORKS, "Whose X-Forwarded-For is believed"),
    }
)
MAPPERS = one_or_list(TEXT, "a mapper's name or a list of names")
UPSTREAM_PATH = text(r"[!\"$-~]*", "a path in plain ASCII without #")
PROMPTER: Field = (TEXT, "The prompter: a function of prompters.py or a built-in one")
TEMPLATE: Field = (TEXT, "One of `templates`")
ENTRY = section(
    {
        "path": (UPSTREAM_PATH, "The backend's path, appended to the url; without it: the same"),
        "in": (MAPPERS, "Mapper, or mappers run left to right, for requests"),
        "out": (MAPPERS, "Mapper or mappers for answers"),
        "stream": (MAPPERS, "Mapper or mappers for streamed answers"),
        "stream_path": (UPSTREAM_PATH, "The backend's path when an answer is to be streamed"),
        "prompter": PROMPTER,
        "template": TEMPLATE,
    }
)


def _endpoint(value: Any) -> str:
    endpoint(value)
    return str(value)


MAPPING = section(
    {},
    rest=by_type({type(None): NOTHING, str: UPSTREAM_PATH, dict: ENTRY}, "empty, a path, or a section with path, in, out, …"),
    name=Kind(_endpoint, lambda: {"pattern": f"^(?:{ENDPOINT})$"}),
)
API_VERSION = text(r"\d{4}-\d\d-\d\d(-preview)?|preview|latest", "a version such as 2024-10-21")
AUTH = ["bearer", "x-api-key", "api-key", "x-goog-api-key", "none", "passthrough"]
SPEAKS = {
    **dict.fromkeys(
        ("vllm", "lmstudio", "groq", "mistral", "deepseek", "openrouter", "together", "azure", "litellm"), "openai"
    ),
    **dict.fromkeys(("google", "vertex"), "gemini"),
    **dict.fromkeys(("llama.cpp", "llama-cpp"), "llamacpp"),
    "claude": "anthropic",
    "huggingface": "tgi",
    **dict.fromkeys(("aws", "converse", "amazon"), "bedrock"),
}  # what people call a dialect → the dialect
CAPABILITIES = section(
    {
        "stream": (FLAG, "Streams"),
        "tools": (FLAG, "Tools"),
        "parallel_tools": (FLAG, "Several tool calls in one turn"),
        "tool_choice": (FLAG, "A tool that must be called"),
        "images": (FLAG, "Images"),
        "json_schema": (FLAG, "Answers by a JSON schema"),
        "stop": (FLAG, "Stop sequences"),
        "n": (FLAG, "Several answers a call"),
        "logprobs": (FLAG, "Logprobs"),
        "context": (number("a number of tokens", 1, 1_000_000_000, whole=True), "Tokens of the longest prompt"),
        "embeddings": (FLAG, "Embeddings"),
    }
)
ROUTE: Field = (
    text(r"(?:/[A-Za-z0-9._~-]+)+", "a path such as /llama, without a / at its end"),
    "Path prefix that chooses this target, and is stripped then",
)
TARGET = section(
    {
        "url": (
            web_address(also=("demo://", "command://[A-Za-z0-9_-]+")),
            "Where the backend is: http(s)://…, demo:// or command://NAME",
        ),
        "envkey": (VARIABLE, "Environment variable that holds the backend's key"),
        "key": (SECRET, "The backend's key itself; better in envkey"),
        "auth": (one_of(lambda: AUTH), "How the key is sent"),
        "headers": (
            section({}, rest=HEADER, name=text(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", "a header's name")),
            "Headers that every call to this backend gets",
        ),
        "model": (TEXT, "Model name that is sent instead of the client's"),
        "route": ROUTE,
        "prompter": PROMPTER,
        "template": TEMPLATE,
        "mapping": (MAPPING, "Path by path: which are served, where they go, what maps them"),
        "preserveMethod": (FLAG, "Resend method and body on a redirect"),
        "timeout": (SECONDS, "Seconds that this backend may be silent"),
        "verify": (
            by_type({bool: FLAG, str: FILE}, "true, false or a file"),
            "false: any certificate; a file: whose authorities are trusted",
        ),
        "cert": (list_of(FILE, "two files: certificate and key", length=2), "Client certificate and its key"),
        "proxy": (web_address(credentials=True), "Outbound HTTP proxy"),
        "dialect": (one_of(dialects.names, SPEAKS), "The API that the backend speaks"),
        "on_loss": (one_of(lambda: ["allow", "warn", "reject"]), "What to do when a translation would lose a field"),
        "system_policy": (
            one_of(lambda: ["inline", "hoist", "user"]),
            "System messages in mid-conversation: left there, moved to the front, or sent as the user's",
        ),
        "capabilities": (CAPABILITIES, "What the backend can do; what it cannot is refused instead of lost"),
        "azure": (
            section(
                {
                    "api_version": (API_VERSION, "Azure's api-version, such as 2024-10-21"),
                    "deployment": (text(r"[\w.-]+", "a deployment's name"), "Deployment; without it: the model's name"),
                },
                required=("api_version",),
            ),
            "Azure OpenAI's urls",
        ),
        "start": START,
        "aws": (
            section(
                {
                    "region": (
                        text(r"[a-z]{2}(-[a-z]+)+-\d", "a region such as us-east-1"),
                        "Region, where the url does not tell it",
                    ),
                    "assume_role": (
                        text(r"arn:aws[a-z-]*:iam::\d{12}:role/[!-~]+", "a role's ARN"),
                        "Role that signs the requests",
                    ),
                }
            ),
            "How requests to Bedrock and SageMaker are signed",
        ),
        **OF_TARGET,
        **allowances.OF_TARGET,
        **caching.OF_TARGET,
    },
    required=("url",),
)
SERVED = section(
    {"target": (TEXT, "Target that serves it"), "model": (TEXT, "Model name that is sent instead")}, required=("target",)
)
MODEL = by_type(
    {str: Kind(lambda name: {"target": TEXT.check(name)}, TEXT.json), dict: SERVED}, "a target's name or {target, model}"
)
DEFAULT = text(what="the name of a target (and none can be called default)")
TAGS = ("preprompt", "start", "system", "user", "assistant")
SECTIONS: dict[str, Field] = {
    "system": (SYSTEM, "The proxy itself"),
    "cerbere": (CERBERE, "Who may connect, and when an address is banned"),
    "targets": (
        section(
            {"default": (DEFAULT, "The target of a call that names none")},
            required=("default",),
            rest=with_pools(TARGET, ROUTE),
            name=text(TRIMMED, "a name that a header can carry"),
        ),
        "The backends",
    ),
    "models": (
        section({}, rest=MODEL),
        "Requested model, or a pattern with *, and the target that serves it",
    ),
    "templates": (
        section({}, rest=section({tag: (ANY_TEXT, f"The {tag} tag") for tag in TAGS}, rest=ANY_TEXT)),
        "Texts that prompters build prompts from",
    ),
    "commands": COMMANDS,
    "records": (
        section(
            {
                "cassettes": (
                    section(
                        {
                            "folder": (FILE, "Folder that the cassettes are written into"),
                            "targets": (list_of(TEXT, "a list of targets"), "Only calls to these; empty: to all"),
                            "redact": (list_of(recording.PATTERN, "a list of regular expressions"), "What goes out of them"),
                        }
                    ),
                    "Keep the four bodies of each mapped call, for replay",
                ),
                **recording.FIELDS,
                **reporting.FIELDS,
            }
        ),
        "What is kept of calls after they have ended",
    ),
    "state": (
        text(r"memory|rediss?://[!-~]+", "memory, or the url of a Redis: redis://… or rediss://…", secret=True),
        "Where limits, budgets and bans are counted",
    ),
    "on_state_loss": (one_of(lambda: ["allow", "refuse"]), "Calls while a shared state is away"),
}
SECTIONS |= allowances.SECTIONS | caching.SECTIONS | viewing.SECTIONS
ROOT = section(SECTIONS, required=("targets",))


def json_schema() -> Json:
    """The JSON Schema of config.yaml, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "mooltiproxy configuration", **ROOT.json()}


Fault = tuple[Path, str]
EMPTY = "is empty: it needs `targets:`; config.template.yaml shows all"


def validate(data: Any) -> tuple[dict[str, Any], list[Fault]]:
    """What is sound of the data, in its right types, and all faults.

    Faulty parts are taken out and the rest is checked again, so that what it says can be checked too.
    """
    if not isinstance(data, dict):
        return {}, [((), EMPTY if data is None else str(must_be("sections such as `targets:`", data)))]
    faults: dict[Path, str] = {}
    while True:
        try:
            return _found(ROOT.check(data)), list(faults.items())
        except MultipleInvalid as wrong:
            for fault in wrong.errors:
                path = tuple(part if isinstance(part, int) else str(part) for part in fault.path)
                faults.setdefault(path, fault.msg)  # a required value that was taken out is not missing
                data = _without(data, path, isinstance(fault, RequiredFieldInvalid))


def _without(data: dict[str, Any], path: Path, required: bool) -> dict[str, Any]:
    """A copy without that part; of a list, without all of it."""
    head, *rest = path
    inner = data.get(str(head))
    if rest and (isinstance(inner, dict) or (required and inner is None)):
        return {**data, str(head): _without(inner or {}, tuple(rest), required)}
    if required and not rest:
        return {**data, str(head): MISSING}
    return {key: value for key, value in data.items() if key != head}


def _found(data: Any) -> Any:
    if not isinstance(data, dict):
        return data
    return {key: _found(value) for key, value in data.items() if value is not MISSING}
