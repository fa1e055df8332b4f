"""What is printed at the start: where, what is behind, what is on, and a first request to paste. It holds no key."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from proxy.config import Config, Pool, Target
from proxy.generation import Generation


def announce(generation: Generation, listening: socket.socket) -> None:
    """Prints the banner; `listening` tells the port where the system chose it."""
    config: Config = generation.config
    host, port = listening.getsockname()[:2]
    url = address(config, host, port)
    lines = [
        f"mooltiproxy  {url}"
        + ("" if host.startswith("127.") or host == "::1" else f"   (listening on {host}: reachable from elsewhere)")
    ]
    for target in config.targets.values():
        marks = [mark for mark in ("default" if target.name == config.default else "", target.dialect or "") if mark]
        route = (
            f"  below {target.route}"
            if target.route
            else f"  {len(target.mapping)} path{'s' * (len(target.mapping) > 1)}"
            if target.mapping
            else ""
        )
        lines.append(f"  target  {target.name:<12} {target.url}{route}  {' '.join(marks)}".rstrip())
    for pool in config.pools.values():
        marks = ["default"] if pool.name == config.default else []
        lines.append(f"  pool    {pool.name:<12} {pool.strategy} over {', '.join(pool.members)}  {' '.join(marks)}".rstrip())
    if config.console:
        lines.append(f"  console {url}/console")
    lines.append("  gates   " + ", ".join(_gates(config)))
    lines += ["", "  a first request:", "  " + _curl(config, url), ""]
    try:
        print("\n".join(lines), flush=True)
    except OSError:  # nobody reads our output: no reason not to serve
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def address(config: Config, host: str, port: int) -> str:
    """The proxy's URL as this machine reaches it."""
    named = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"{'https' if config.system.ssl else 'http'}://{named}:{port}"


def _gates(config: Config) -> list[str]:
    gates = ["master key"] if config.master_key else []
    if config.system.open_to:
        gates.append("open to " + " ".join(str(network) for network in config.system.open_to))
    gates.append(f"ban after {config.cerbere.max_tries} wrong keys")
    lists = {"whitelist": config.cerbere.whitelist, "blacklist": config.cerbere.blacklist, "only": config.cerbere.only}
    gates += [name for name, networks in lists.items() if networks]
    if config.keys:
        gates.append(f"{len(config.keys)} key{'s' * (len(config.keys) > 1)} of people")
    named = {"limits": config.limits or any(target.limits for target in config.targets.values()), "guard": config.guard}
    gates += [name for name, is_on in {**named, "prices": config.prices}.items() if is_on]
    if config.system.client_ca:
        gates.append("client certificates")
    return gates


def key(config: Config) -> str:
    """What a shell puts in the place of the master key; the key itself is not shown."""
    if config.system.local_only:
        return ""
    if "MOOLTIPROXY_KEY" in os.environ and not config.system.masterkey:
        return "$MOOLTIPROXY_KEY"
    program = Path(sys.modules["__main__"].__file__ or "main.py").resolve()
    program = program if program.is_file() else program.parent  # the file that it is packed into
    return f"$(cd '{Path.cwd()}' && '{sys.executable}' '{program}' key --config '{config.file or 'config.yaml'}')"


def model(config: Config, target: Target | Pool) -> str | None:
    """A model that the target is known to have, if any is."""
    rules = (rule.pattern for rule in config.models if rule.target == target.name and "*" not in rule.pattern)
    known = next(rules, None)
    if isinstance(target, Pool):
        return known or model(config, config.targets[next(iter(target.members))])
    return known or target.model or ("demo" if target.url.startswith("demo:") else None)


def _curl(config: Config, url: str) -> str:
    secret = key(config)
    options = "-k " if config.system.ssl else ""
    authorization = f' -H "Authorization: Bearer {secret}"' if secret else ""
    named = model(config, config.named(config.default)) or "MODEL"
    body = f'{{"model": "{named}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'
    return f"curl {options}{url}/v1/chat/completions{authorization} -H 'Content-Type: application/json' -d '{body}'"
