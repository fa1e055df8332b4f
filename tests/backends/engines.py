"""The engines of the shared state, each with real proxies around it: one process; workers below a supervisor; machines around a
Redis."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from tests.backends.proxy import Proxy
from tests.backends.redis_server import RedisServer

ENGINES = ("memory", "workers", "redis")
TOOK_LONG_S = 30.0


class Machines:
    """The proxies of an engine, in a `with`. `config`: each one has it, without `state` and `system`."""

    def __init__(
        self,
        folder: Path,
        engine: str,
        config: str,
        workers: int = 2,
        env: Mapping[str, str] | None = None,
        log: str = "format: json",
    ) -> None:
        self._folder, self._engine, self._env = folder, engine, env
        count = workers if engine == "workers" else 1
        self._text = f"system: {{workers: {count}, log: {{{log}}}}}\n{config}\n"
        self.proxies: list[Proxy] = []
        self.redis: RedisServer | None = None

    def __enter__(self) -> Machines:
        with ExitStack() as stack:
            if self._engine == "redis":
                self._folder.mkdir(exist_ok=True)
                self.redis = RedisServer(self._folder)
                stack.callback(self.redis.stop)
                self._text += f"\nstate: {self.redis.url}\n"
            self._stack = stack.pop_all()
        self.another()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, trace)

    def another(self) -> Proxy:
        """One more machine where there can be several, else the one that there is."""
        if not self.proxies or self._engine == "redis":
            folder = self._folder / f"machine-{len(self.proxies)}"
            self.proxies.append(self._stack.enter_context(Proxy(folder, self._text, env=self._env)))
        return self.proxies[-1]

    @property
    def urls(self) -> list[str]:
        return [proxy.url for proxy in self.proxies]

    @property
    def log(self) -> str:
        return "".join(proxy.log for proxy in self.proxies)

    def wait_for_log(self, text: str, times: int = 1) -> None:
        """Returns when all of their logs hold that text so often."""
        until = time.monotonic() + TOOK_LONG_S
        while (found := self.log.count(text)) < times:
            assert time.monotonic() < until, f"{text!r} is there {found} times and not {times}"
            time.sleep(0.02)
