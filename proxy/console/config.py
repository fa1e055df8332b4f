"""The configuration as it is in force, and, with `edit: true`, its file: checked, changed with a backup, brought back.

Secrets are masked, in the file too: a mask that comes back stands for what was there. What names a program, a file or a URL, or
says whose key goes where, cannot be changed here: whoever gets hold of a session must not get hold of the machine.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path as File
from typing import TYPE_CHECKING, Any

import yaml

from proxy.config import read_env_file
from proxy.console.sessions import Visitor, body_of, settings
from proxy.errors import BadRequest, ConfigError, ProxyError, Refused
from proxy.pages import reloaded
from proxy.records.secrets import MASK, SECRET_NAME, SHAPES
from proxy.settings.reading import read_source
from proxy.settings.source import MOST_PARTS, Path, Source, dotted, size_of, source_of
from proxy.workbench.show import lines_of

if TYPE_CHECKING:
    from proxy.pages import Visit

SECRETS = frozenset(["masterkey", "key", "sha256"])  # whose value is a secret wherever they stand
SECRET_MAPS = ("headers", "env")  # their values may be
WITHIN = (  # secrets within a value: user and password of a url, a key in its query, what looks like a key
    re.compile(r"(?<=://)[^/@\s]+(?=@)"),
    re.compile(r"(?<=[?&])((?:[\w-]*(?:token|secret|password))|key)=[^&#]+"),
    *map(re.compile, SHAPES),
)
FIXED = tuple(  # what cannot be changed here; * is any name
    tuple(place.split("."))
    for place in (
        *("system.host", "system.port", "system.ssl", "system.client_ca", "system.log.file", "cache.store", "state", "records"),
        *("commands", "console.enabled", "console.edit", "keys.*.envkey"),
        *(f"targets.*.{name}" for name in ("url", "proxy", "verify", "cert", "start", "aws", "azure")),
        *(f"targets.*.{name}" for name in ("envkey", "envkeys", "key_command", "mapping", "route")),
    )
)
KEPT = 50  # backups of a file; the oldest go
PLACE = re.compile(r"[^\n]*?:([0-9]+)(?::[0-9]+)?: ")  # how a fault begins
_changing = threading.Lock()  # one change at a time


# --- what is in force


def effective(visit: Visit, visitor: Visitor) -> None:
    """GET /console/api/config"""
    raw, config = _file_of(visit).read_bytes(), visit.generation.config
    source = source_of(str(config.file), raw)
    rows = [{"path": dotted(path), "value": value, "line": source.lines.get(path)} for path, value in _leaves(source.data, ())]
    rows += _defaults(visit, source)
    told: dict[str, Any] = {"file": config.file, "rows": rows, "served": lines_of(visit.generation)}
    if settings(visit).edit:
        told |= {"text": _masked(raw.decode("utf-8-sig")), "base": _stamp(raw), "undo": bool(_backups(_file_of(visit)))}
    visit.reply.json(200, told)


def _leaves(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    """Every value of the file that is no section, secrets masked."""
    if isinstance(value, dict) and value:
        for key, member in value.items():
            yield from _leaves(member, (*path, key))
    elif isinstance(value, list) and any(isinstance(member, (dict, list)) for member in value):
        for index, member in enumerate(value):
            yield from _leaves(member, (*path, index))
    else:
        yield path, _shown(path, value)


def _shown(path: Path, value: Any) -> Any:
    if isinstance(value, list):
        return [_shown((*path, index), member) for index, member in enumerate(value)]
    if _is_secret(path) or not isinstance(value, str):
        return MASK if _is_secret(path) else value
    for pattern in WITHIN:
        value = pattern.sub(MASK, value)
    return value


def _is_secret(path: Path) -> bool:
    if len(path) > 1 and path[-2] in SECRET_MAPS:
        return path[-2] == "env" or bool(SECRET_NAME.search(str(path[-1])))
    return bool(path) and path[-1] in SECRETS


def _defaults(visit: Visit, source: Source) -> list[dict[str, Any]]:
    """What the file does not say of `system` and `cerbere`, or the command line says instead."""
    config = visit.generation.config
    parts = {("system",): config.system, ("system", "deadlines"): config.system.deadlines, ("cerbere",): config.cerbere}
    rows = []
    for section, values in parts.items():
        for name in values.__annotations__:
            value = getattr(values, name)
            simple = value is None or isinstance(value, (str, int, float))
            if simple and name not in SECRETS and (*section, name) not in source.lines:
                rows.append({"path": dotted((*section, name)), "value": value, "line": None})
    return rows


# --- the file


def _file_of(visit: Visit) -> File:
    if not visit.generation.config.file:
        raise Refused("there is no configuration file", status=404, code="no_file")
    return File(visit.generation.config.file)


def _stamp(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def _scalars(node: Any, path: Path, above: frozenset[int]) -> Iterator[tuple[Path, Any]]:
    """Every plain value of a YAML tree, with its path."""
    if id(node) in above:
        return
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _scalars(value, (*path, str(key.value)), above | {id(node)})
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _scalars(value, (*path, index), above | {id(node)})
    elif isinstance(node, yaml.ScalarNode):
        yield path, node


def _places(text: str, wanted: Callable[[Path, str], bool]) -> dict[tuple[int, int], Path]:
    """Where those values stand in a text, the last one first; nothing for what is no YAML, or too much of it."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        found = list(_scalars(root, (), frozenset())) if root and size_of(root, {}) <= MOST_PARTS else []
    except (yaml.YAMLError, RecursionError):
        return {}
    spans = {(node.start_mark.index, node.end_mark.index): path for path, node in found if wanted(path, node.value)}
    return dict(sorted(spans.items(), reverse=True))


def _hides(path: Path, value: str) -> bool:
    return _is_secret(path) or any(pattern.search(value) for pattern in WITHIN)


def _masked(text: str) -> str:
    for start, end in _places(text, _hides):
        text = f'{text[:start]}"{MASK}"{text[end:]}'
    return text


def _unmasked(text: str, old: str) -> str:
    """A text of the page's, with the secrets in the places of their masks. Raises BadRequest for a mask of nothing."""
    secrets = {path: old[start:end] for (start, end), path in _places(old, _hides).items()}
    for (start, end), path in _places(text, lambda _, value: value == MASK).items():
        if path not in secrets:
            raise BadRequest(f"{dotted(path)}: {MASK} stands for no secret that was there: write it out")
        text = text[:start] + secrets[path] + text[end:]
    return text


def _fixed(data: Any) -> dict[Path, Any]:
    """What of a configuration cannot be changed here."""
    found: dict[Path, Any] = {}

    def look(value: Any, pattern: tuple[str, ...], path: Path) -> None:
        if not pattern:
            found[path] = value
        elif isinstance(value, str) and pattern == ("path",):  # `/models: /v1/models` is short for a `path`
            place = (*path, "path")
            found[place] = value
        elif isinstance(value, dict):
            for name in value if pattern[0] == "*" else [pattern[0]] * (pattern[0] in value):
                look(value[name], pattern[1:], (*path, name))

    for pattern in FIXED:
        look(data, pattern, ())
    return found


def _faults(visit: Visit, raw: bytes, old: bytes) -> list[str]:
    """What speaks against those bytes as configuration, in the words of `check`."""
    generation, name = visit.generation, str(visit.generation.config.file)
    try:
        source, before = source_of(name, raw), _fixed(source_of(name, old).data)
        after = _fixed(source.data)
        changed = [
            path for path in {**before, **after} if path not in before or path not in after or before[path] != after[path]
        ]
        if changed:
            return [source.fault(path, "cannot be changed here, only in the file itself") for path in changed]
        read_source(source, read_env_file(".env", os.environ), generation.mappers, generation.prompters)
    except ConfigError as fault:
        return list(fault.faults)
    return []


def _told(faults: list[str]) -> list[dict[str, Any]]:
    places = [(PLACE.match(fault), fault) for fault in faults]
    return [{"line": int(at[1]) if at else None, "message": fault[at.end() if at else 0 :]} for at, fault in places]


def _given(visit: Visit, old: bytes) -> bytes:
    if not settings(visit).edit:
        raise Refused("the configuration cannot be edited here: `console: {edit: true}` allows it", code="not_editable")
    body = body_of(visit)
    if not isinstance(body.get("text"), str):
        raise BadRequest("`text` must be a text", param="text")
    if body.get("base", _stamp(old)) != _stamp(old):
        raise BadRequest("the file has changed meanwhile: load it again", status=409, code="file_changed")
    return _unmasked(body["text"], old.decode("utf-8-sig")).encode()


def check(visit: Visit, visitor: Visitor) -> None:
    """POST /console/api/config/check {text}"""
    old = _file_of(visit).read_bytes()
    visit.reply.json(200, {"faults": _told(_faults(visit, _given(visit, old), old))})


def apply(visit: Visit, visitor: Visitor) -> None:
    """POST /console/api/config/apply {text, base}: 422 with the faults, 409 when the file is not the one that was edited."""
    with _changing:
        file = _file_of(visit)
        old = file.read_bytes()
        _put(visit, file, _given(visit, old), old, keep=True)


def undo(visit: Visit, visitor: Visitor) -> None:
    """POST /console/api/config/undo: the latest backup becomes the file again."""
    with _changing:
        file = _file_of(visit)
        backups = _backups(file)
        if not settings(visit).edit or not backups:
            raise Refused("there is nothing to undo", status=404, code="nothing_to_undo")
        if _put(visit, file, backups[-1].read_bytes(), file.read_bytes(), keep=False):
            backups[-1].unlink()


def _put(visit: Visit, file: File, raw: bytes, old: bytes, keep: bool) -> bool:
    """Writes and loads those bytes, if nothing speaks against it; whether they serve now. `keep`: the old ones in a backup."""
    faults = _faults(visit, raw, old)
    if not faults:
        try:
            backup = _back_up(file, old) if keep else None
            _write(file, raw)
            faults = list(reloaded(visit))
            if faults:
                _write(file, old)
                if backup:
                    backup.unlink()
        except OSError as fault:
            raise ProxyError(f"{file} cannot be written: {fault.strerror}", code="not_writable") from fault
    visit.reply.json(422 if faults else 200, {"faults": _told(faults)})
    return not faults


def _backups(file: File) -> list[File]:
    return sorted(file.resolve().parent.glob(f"{glob.escape(file.name)}.*.bak"))


def _back_up(file: File, old: bytes) -> File:
    moment = time.time()
    stamp = time.strftime("%Y-%m-%dT%H-%M-%S", time.gmtime(moment)) + f".{int(moment % 1 * 1e6):06d}Z"
    made = file.resolve().with_name(f"{file.name}.{stamp}.bak")
    _write(made, old, file.stat().st_mode & 0o777)
    for oldest in _backups(file)[:-KEPT]:
        oldest.unlink()
    return made


def _write(file: File, raw: bytes, mode: int | None = None) -> None:
    """All of it or nothing, with the rights that the file has. Raises OSError."""
    place = file.resolve()  # a link stays one
    mode = place.stat().st_mode & 0o777 if mode is None else mode
    fd, made = tempfile.mkstemp(dir=place.parent, prefix=f".{file.name}.")
    try:
        with open(fd, "wb") as out:
            out.write(raw)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(made, mode)
        os.replace(made, place)
    except BaseException:
        os.unlink(made)
        raise
