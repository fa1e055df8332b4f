"""The words of the command line: what may stand there, and what `--help` says of it."""

from __future__ import annotations

import argparse


def parser() -> argparse.ArgumentParser:
    """`command` of what it parses is serve, or the name of a file in proxy/commands/."""
    top = argparse.ArgumentParser(
        prog="python -m main",
        description="mooltiproxy: any LLM client in front, any LLM backend behind. Without a command it serves.",
        epilog="The working directory's .env is read too. Example: python -m main --config team.yaml --port 9000",
    )
    _add_config(top, "config.yaml")
    top.add_argument("--host", help="address to listen on, instead of system.host")
    top.add_argument("--port", type=_port, help="port to listen on, instead of system.port; 0: any that is free")
    top.add_argument("--debug", action="store_true", help="log bodies before and after mapping")
    top.add_argument(
        "--target", metavar="URL", help="no configuration: pass everything through to this URL, for this machine only"
    )
    top.set_defaults(command="serve")
    commands = top.add_subparsers(title="commands", metavar="COMMAND")
    check = commands.add_parser(
        "check",
        help="validate the configuration and exit",
        description="Validates the configuration: prints all faults, each with file, line and path; exits 1 if there are any.",
        epilog="example: python -m main check --config team.yaml --show",
    )
    _add_config(check)
    check.add_argument("--show", action="store_true", help="print every target's endpoints with final URLs and their lines")
    check.add_argument("--schema", action="store_true", help="print a JSON Schema of the configuration, for editors")
    check.set_defaults(command="check")
    connect = commands.add_parser(
        "connect",
        help="print the lines that point a client at this proxy",
        description="Prints the variables, files or code that point a client at this configuration; no key is shown.",
        epilog="example: python -m main connect claude-code; without a name all clients are listed",
    )
    connect.add_argument("name", nargs="?", metavar="CLIENT", help="claude-code, codex, openai-sdk, …; none: list them")
    _add_config(connect)
    connect.add_argument("--target", metavar="NAME", help="the target to reach, instead of the default one")
    connect.add_argument("--model", metavar="NAME", help="the model to ask for")
    connect.set_defaults(command="connect")
    key = commands.add_parser(
        "key",
        help="print the key that the proxy asks for",
        description="Prints the master key, from wherever the proxy reads it: the environment, .env or the configuration.",
        epilog='example: curl -H "Authorization: Bearer $(python -m main key)" http://127.0.0.1:8000/v1/models',
    )
    _add_config(key)
    key.set_defaults(command="key")
    reload = commands.add_parser(
        "reload",
        help="let the running proxy take the changed configuration",
        description="Checks the configuration, then has the running proxy load it, mappers.py and prompters.py. Calls in "
        "flight go on. If anything is faulty the old configuration goes on; the faults are printed, and the exit status is 1.",
        epilog="example: python -m main reload --config team.yaml",
    )
    _add_config(reload)
    reload.add_argument("--port", type=_port, default=argparse.SUPPRESS, help="where it listens, if it was started with --port")
    reload.set_defaults(command="reload")
    return top


def _add_config(to: argparse.ArgumentParser, default: str = argparse.SUPPRESS) -> None:
    """Before a command as well as behind it: what stands before is not overwritten by a command's default."""
    to.add_argument("--config", default=default, metavar="FILE", help="configuration file (default: config.yaml)")


def _port(text: str) -> int:
    if text.isascii() and text.isdigit() and int(text) < 65536:
        return int(text)
    raise argparse.ArgumentTypeError(f"must be 0 to 65535, not {text}")
