"""How a target is reached: the requests adapter that its url wants, and the headers that all its requests carry."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from proxy import dialects
from proxy.config import Config, Target
from proxy.process import load_requests

if TYPE_CHECKING:
    from requests.adapters import BaseAdapter


def adapter_of(target: Target, config: Config) -> BaseAdapter:
    """The target's own adapter: the one that the scheme of its url wants, in that of its cloud, which signs."""
    load_requests()
    if not _signed(target):
        return _inner(target, config)
    from proxy.adapters.aws import Aws

    return Aws(_inner(target, config), dialects.load(target.dialect or ""), target.aws)


def is_plain(target: Target) -> bool:
    """Whether nothing can be found wrong while its adapter is made."""
    special = (target.start, target.proxy, target.cert, target.verify is not True)
    return urlsplit(target.url).scheme in ("demo", "http", "https") and not any(special) and not _signed(target)


def _signed(target: Target) -> bool:
    return target.dialect is not None and dialects.load(target.dialect).aws is not None


def _inner(target: Target, config: Config) -> BaseAdapter:
    parts, deadlines = urlsplit(target.url), config.system.deadlines
    if parts.scheme == "demo":
        from proxy.adapters.demo import Demo

        return Demo()
    if parts.scheme == "command":
        from proxy.adapters.command import CommandAdapter

        return CommandAdapter(config.commands[parts.netloc], config.secret_names())
    if target.start:
        from proxy.adapters.managed import Managed

        return Managed(config, target, target.start)
    if target.proxy:
        from proxy.adapters.outbound import Outbound

        return Outbound(target.proxy, deadlines.connect, target.verify, target.cert)
    from proxy.adapters.exchange import Exchange

    return Exchange(deadlines.connect, deadlines.header, target.verify, target.cert)


def static_headers(target: Target) -> dict[str, str]:
    """What every request to the target carries: its host, its key in the style it wants, what its API and its entry add."""
    headers = {"host": urlsplit(target.url).netloc.rpartition("@")[2]}
    if target.dialect:
        headers.update(dialects.load(target.dialect).headers)
    headers.update(key_field(target.auth, target.key))
    headers.update({name.lower(): value for name, value in target.headers.items()})
    return headers


def key_field(auth: str, key: str | None) -> dict[str, str]:
    """The header that carries a backend's key, in the style that the target wants."""
    if not key or auth in ("none", "passthrough"):
        return {}
    return {"authorization": f"Bearer {key}"} if auth == "bearer" else {auth: key}
