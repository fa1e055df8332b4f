"""The words of the command line: what may stand there, and what `--help` says of it."""

from __future__ import annotations

import argparse
from typing import Any


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
    top.add_argument(
        "--session",
        nargs="?",
        const="",
        metavar="ID",
        help="record conversations into datasets/ID.json, in ShareGPT's form; without ID: named after the time",
    )
    top.set_defaults(command="serve")
    commands = top.add_subparsers(title="commands", metavar="COMMAND")
    _add_check(commands)
    _add_connect(commands)
    _add_key(commands)
    _add_reload(commands)
    _add_init(commands)
    _add_explain(commands)
    _add_replay(commands)
    _add_export(commands)
    return top


def _add_check(commands: Any) -> None:
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


def _add_connect(commands: Any) -> None:
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


def _add_key(commands: Any) -> None:
    key = commands.add_parser(
        "key",
        help="print the key that the proxy asks for, or make one for a person",
        description="Prints the master key, from wherever the proxy reads it: the environment, .env or the configuration. "
        "With `new NAME`: a new key for NAME, once, and the line that makes the proxy take it.",
        epilog='example: curl -H "Authorization: Bearer $(python -m main key)" http://127.0.0.1:8000/v1/models',
    )
    key.add_argument("action", nargs="?", choices=["new"], help="make a key")
    key.add_argument("name", nargs="?", metavar="NAME", help="whose key it is")
    key.add_argument("--models", nargs="+", default=[], metavar="MODEL", help="models, or patterns with *, that it may use")
    _add_config(key)
    key.set_defaults(command="key")


def _add_reload(commands: Any) -> None:
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


def _add_init(commands: Any) -> None:
    init = commands.add_parser(
        "init",
        help="ask a backend what it can do, and write it into the configuration",
        description="Writes a backend into the configuration as a target: asks three questions in a terminal, or takes flags; "
        "asks the backend what it speaks and what it honours, and writes that as the target's capabilities. Everything else in "
        "the file stays as it is, comments too. With --from it takes over the configuration of another gateway instead.",
        epilog="examples: python -m main init --url http://127.0.0.1:8080; "
        "python -m main init --dialect openai --envkey OPENAI_API_KEY --yes; python -m main init --from litellm.yaml",
    )
    _add_config(init)
    init.add_argument("--url", help="where the backend is")
    init.add_argument("--dialect", metavar="NAME", help="what it speaks, or whose it is (ollama, groq, …); else it is asked")
    init.add_argument("--name", help="the target's name; else whose it is, or its host")
    init.add_argument("--envkey", metavar="VARIABLE", help="the environment variable that holds its key; - for none")
    init.add_argument("--model", metavar="NAME", help="the model to ask, which is sent instead of the clients' from then on")
    init.add_argument("--default", action="store_true", help="make it the default target")
    init.add_argument("--yes", action="store_true", help="ask nothing that has a usual answer")
    init.add_argument("--no-probe", action="store_true", help="do not ask the backend what it honours")
    init.add_argument("--save-key", action="store_true", help="put the key, typed or on standard input, into .env")
    init.add_argument("--force", action="store_true", help="replace the target, or with --from the file, that is there")
    init.add_argument("--from", dest="source", metavar="FILE", help="take over LiteLLM's YAML, openai-forward's YAML or .env")
    init.set_defaults(command="init")


def _add_explain(commands: Any) -> None:
    explain = commands.add_parser(
        "explain",
        help="show what becomes of one request, mapper by mapper",
        description="Shows the four hops of one request: what the client sends, what each mapper makes of it, what goes "
        "upstream, and the way back; where each field comes from, and what is lost. Nothing is sent without --live: the "
        "backend's answer is an example in its API. Exits 1 if the client would get an error.",
        epilog="example: python -m main explain --path /v1/messages --example tools-stream",
    )
    _add_config(explain)
    explain.add_argument(
        "--target", dest="to", metavar="NAME", help="the target or pool, instead of the one that would be chosen"
    )
    explain.add_argument("--path", default="/v1/chat/completions", help="the client's path, which says its API")
    explain.add_argument("--method", default="POST", help="the client's method (default: POST)")
    what = explain.add_mutually_exclusive_group()
    what.add_argument("--body", metavar="FILE", help="the client's body; - is standard input")
    what.add_argument("--example", metavar="NAME", help="such as chat, tools-stream, image, completions, embeddings")
    what.add_argument("--cassette", metavar="FILE", help="request and answer of a recorded call")
    explain.add_argument("--live", action="store_true", help="ask the backend itself, once")
    explain.add_argument("--json", action="store_true", help="for programs: one JSON object")
    explain.set_defaults(command="explain")


def _add_replay(commands: Any) -> None:
    replay = commands.add_parser(
        "replay",
        help="run today's mappers over recorded calls, and show what has changed",
        description="Maps the requests and answers of cassettes with today's mappers, without any network, and compares every "
        "byte with what was recorded. Streams are cut anew at every byte. Exits 1 if anything has changed.",
        epilog="example: python -m main replay cassettes --accept",
    )
    _add_config(replay)
    replay.add_argument("folder", nargs="?", default="cassettes", metavar="FOLDER|FILE", help="cassettes (default: cassettes)")
    replay.add_argument("--accept", action="store_true", help="take what has changed as right, and write it into the cassettes")
    replay.add_argument("--json", action="store_true", help="for programs: one JSON object")
    replay.add_argument("--export", metavar="CALL-ID", help="write one file for a bug report, which is a test")
    replay.add_argument("--out", metavar="FILE", help="where --export writes (default: report_CALL-ID.py)")
    replay.set_defaults(command="replay")


def _add_export(commands: Any) -> None:
    export = commands.add_parser(
        "export",
        help="write conversations or calls out of the call log",
        description="Writes what the call log (records.calls) holds, newest first, to standard output or a file. sharegpt, "
        "openai (JSON lines for fine-tuning) and alpaca have one record for each conversation, with its last answer; "
        "chatlog is openai-forward's array, one entry for each call. Exits 1 if nothing fits.",
        epilog="example: python -m main export --format sharegpt --since 2026-11-01 --key alice --out november.json",
    )
    _add_config(export)
    export.add_argument("--format", choices=["sharegpt", "openai", "alpaca", "chatlog"], required=True)
    export.add_argument("--since", metavar="DATE", help="from this date or time on; UTC unless it says a zone")
    export.add_argument("--until", metavar="DATE", help="before this date or time")
    export.add_argument("--key", metavar="NAME", help="calls of this key alone")
    export.add_argument("--model", metavar="NAME", help="calls that asked for this model, or that it answered")
    export.add_argument("--target", dest="of", metavar="NAME", help="calls to this target alone")
    export.add_argument("--out", metavar="FILE", help="a file, which appears when it is whole; - is standard output")
    export.set_defaults(command="export")


def _add_config(to: argparse.ArgumentParser, default: str = argparse.SUPPRESS) -> None:
    """Before a command as well as behind it: what stands before is not overwritten by a command's default."""
    to.add_argument("--config", default=default, metavar="FILE", help="configuration file (default: config.yaml)")


def _port(text: str) -> int:
    if text.isascii() and text.isdigit() and int(text) < 65536:
        return int(text)
    raise argparse.ArgumentTypeError(f"must be 0 to 65535, not {text}")
