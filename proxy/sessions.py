"""How a target is reached: its session, with the adapter that its url wants, and the headers that all its requests carry."""

from __future__ import annotations

from urllib.parse import urlsplit

import requests

from proxy import dialects
from proxy.config import Config, Target


def session_of(target: Target, config: Config) -> requests.Session:
    """A session of its own per target: cookies off, the environment not asked, the adapter that the url's scheme wants."""
    session = requests.Session()
    session.trust_env = False
    session.adapters.clear()
    scheme = urlsplit(target.url).scheme
    if scheme == "demo":
        from proxy.adapters.demo import Demo

        session.mount("demo://", Demo())
    elif scheme == "command":
        from proxy.adapters.command import CommandAdapter

        session.mount("command://", CommandAdapter(config.commands[urlsplit(target.url).netloc], config.secret_names()))
    elif target.start:
        from proxy.adapters.managed import Managed

        session.mount(scheme + "://", Managed(config, target, target.start))
    elif target.proxy:
        from proxy.adapters.outbound import Outbound

        connect_s = config.system.deadlines.connect
        session.mount(scheme + "://", Outbound(target.proxy, connect_s, target.verify, target.cert))
    else:
        from proxy.adapters.exchange import Exchange

        deadlines = config.system.deadlines
        session.mount(scheme + "://", Exchange(deadlines.connect, deadlines.header, target.verify, target.cert))
    if target.dialect and dialects.load(target.dialect).aws:
        from proxy.adapters.aws import Aws

        inner = session.get_adapter(target.url)
        session.mount(scheme + "://", Aws(inner, dialects.load(target.dialect), target.aws))
    return session


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
