"""`dialect: B` → the mapping that a person would have written, for the clients of one API at a time."""

from __future__ import annotations

from collections.abc import Callable

from proxy.config import Entry, Target
from proxy.dialects import SHARED, Dialect, Route, load
from proxy.routing import VERSION

STREAMED = ("chat", "text")
BARE = ("models", "model")  # asked for with GET: nothing to map on the way in


def expand(target: Target, front: str, exists: Callable[[str], bool], aliases: bool) -> list[Entry]:
    """The entries of a target with a `dialect`, as the clients of `front` need them.

    exists: whether a mapper of that name can be called. aliases: the configuration offers other names for its models.
    """
    own, client = load(target.dialect or "openai"), load(front)
    entries = [_own(route, own, aliases) for route in own.routes if own is client or not SHARED.fullmatch(route.path)]
    entries += [Entry(key=prefix + "/*", path=_relative(prefix + "/*", own)) for prefix in own.prefixes if own is client]
    taken = {(entry.method, entry.key) for entry in entries}
    if own is not client:
        prompted = target.prompter is not None
        mapped = (_mapped(route, client, own, exists, prompted) for route in client.routes)
        if target.url.startswith("command://"):
            mapped = (_limited(entry) for entry in mapped)
        entries += [entry for entry in mapped if (entry.method, entry.key) not in taken]
    return [entry._replace(origin="dialect", line=target.line) for entry in entries]


def _limited(entry: Entry) -> Entry:
    """A completion by a program: within its limits, which are told by the client's names."""
    if entry.path != "/completion" or not entry.in_:
        return entry
    return entry._replace(in_=(*entry.in_[:-1], "limitsReqLlamaCpp", entry.in_[-1]))


def _relative(path: str, own: Dialect) -> str:
    """Behind the version: a client's version of an API is not doubled, and gives way to the one that the url has."""
    if own.version and path.startswith(own.version + "/"):
        return path[len(own.version) :]
    version = VERSION.match(path) if own.version else None
    return path[version.end() :] if version else path


def _own(route: Route, own: Dialect, aliases: bool) -> Entry:
    """The same API on both ends: bytes, but for lists of models that must name the aliases too."""
    entry = Entry(key=route.path, method=route.method, path=_relative(route.path, own))
    if route.kind in BARE and aliases and "models" in own.backend:
        return entry._replace(path=own.backend["models"].path, out=_outward(route.kind, own, own))
    return entry


def _mapped(route: Route, client: Dialect, own: Dialect, exists: Callable[[str], bool], prompted: bool) -> Entry:
    """Through the hub, where both APIs have the operation; else bridged, answered here, or unsupported."""
    kind = route.kind
    entry = Entry(key=route.path, method=route.method)
    upstream = own.backend.get("models" if kind == "model" else kind)
    if upstream:
        inward, outward = _inward(kind, client, own, exists), _outward(kind, client, own, exists)
        stream = _through(kind, "Stream", own, client, exists) if kind in STREAMED else ()
        if all(exists(name) for name in (*inward, *outward, *stream)):
            found = entry._replace(path=upstream.path, stream_path=upstream.stream_path, upstream_method=upstream.method)
            found = found._replace(in_=inward, out=outward, stream=stream)
            return _asking_first(found, own, upstream.before) if upstream.before and not prompted else found
    if kind == "text" and "chat" in own.backend:
        return _bridged(entry, client, own)
    if kind == "count" and client.tag != "OpenAI":
        return entry._replace(
            in_=(f"countReq{client.tag}toOpenAI",), answer="countEstimate", out=(f"countAnsOpenAIto{client.tag}",)
        )
    if kind in BARE:
        return entry._replace(answer="modelsAnsAliases", out=_listing(kind, client))
    return entry._replace(answer=route.answer) if route.answer else entry._replace(unsupported=True)


def _asking_first(entry: Entry, own: Dialect, kind: str) -> Entry:
    first, last = f"{kind}Req{own.tag}", f"{kind}Ans{own.tag}"
    return entry._replace(before=own.backend[kind].path, before_in=first, before_out=last)


def _inward(kind: str, client: Dialect, own: Dialect, exists: Callable[[str], bool]) -> tuple[str, ...]:
    if kind in BARE:
        return ()
    if own.tag == "OpenAI":  # takes off what only the hub knows
        strip = f"{kind}ReqOpenAItoOpenAI"
        return (f"{kind}Req{client.tag}toOpenAI", *([strip] if exists(strip) else []))
    return _through(kind, "Req", client, own, exists)


def _outward(kind: str, client: Dialect, own: Dialect, exists: Callable[[str], bool] = lambda name: False) -> tuple[str, ...]:
    if kind not in BARE:
        return _through(kind, "Ans", own, client, exists)
    first = () if own.tag == "OpenAI" else (f"modelsAns{own.tag}toOpenAI",)
    return (*first, "modelsAnsAliases", *_listing(kind, client))


def _listing(kind: str, client: Dialect) -> tuple[str, ...]:
    return () if client.tag == "OpenAI" and kind == "models" else (f"{kind}AnsOpenAIto{client.tag}",)


def _through(kind: str, part: str, one: Dialect, other: Dialect, exists: Callable[[str], bool]) -> tuple[str, ...]:
    """From one API to the other: directly where somebody wrote that pair, else through the hub."""
    direct = f"{kind}{part}{one.tag}to{other.tag}"
    if "OpenAI" in (one.tag, other.tag) or exists(direct):
        return (direct,)
    return (f"{kind}{part}{one.tag}toOpenAI", f"{kind}{part}OpenAIto{other.tag}")


def _bridged(entry: Entry, client: Dialect, own: Dialect) -> Entry:
    """A bare prompt for a backend that only chats: it becomes one user message."""
    chat = own.backend["chat"]
    front = client.tag != "OpenAI"
    return entry._replace(
        path=chat.path,
        stream_path=chat.stream_path,
        upstream_method=chat.method,
        in_=(*([f"textReq{client.tag}toOpenAI"] if front else []), "textReqOpenAItoChat", f"chatReqOpenAIto{own.tag}"),
        out=(f"chatAns{own.tag}toOpenAI", "textAnsChattoOpenAI", *([f"textAnsOpenAIto{client.tag}"] if front else [])),
        stream=(f"chatStream{own.tag}toOpenAI", "textStreamChattoOpenAI")
        + ((f"textStreamOpenAIto{client.tag}",) if front else ()),
    )
