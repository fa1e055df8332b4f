"""`python -m main init`: a backend, asked what it speaks and honours, becomes a target of the configuration.

Three questions in a terminal, or flags. With --from, another gateway's configuration becomes one of ours.
"""

from __future__ import annotations

import getpass
import logging
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from proxy import dialects
from proxy.config import Config, url_fault
from proxy.errors import ConfigError, ProxyError
from proxy.project import ENV_FILE, Project
from proxy.settings.env import read_text
from proxy.settings.kinds import meant
from proxy.workbench import insertion, probe
from proxy.workbench.providers import PROVIDERS, Provider

WIDTH = 16
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
LOCAL = re.compile(r"localhost|[0-9.]+|.*:.*")  # no name for a target


def run(project: Project) -> int:
    """Writes the target; 1 when something is at fault, 130 after Ctrl-C. Nothing is changed then."""
    try:
        if project.arguments.source:
            from proxy.workbench.takeover import take_over

            take_over(project)
            return 0
        logging.getLogger("proxy").addHandler(logging.NullHandler())  # what goes wrong is told here
        return _init(project)
    except (KeyboardInterrupt, EOFError) as ended:
        print("\nnothing was changed", file=sys.stderr)
        return 130 if isinstance(ended, KeyboardInterrupt) else 1
    except ProxyError as fault:
        if isinstance(fault, ConfigError):
            raise
        raise ConfigError([fault.message]) from None


@dataclass
class Wanted:
    """What was answered; no `name`: what it speaks. `secret`: a key for .env, never for the file."""

    name: str
    url: str
    dialect: str | None
    envkey: str | None
    key: str | None
    secret: str | None = None


def _init(project: Project) -> int:
    arguments, environ = project.arguments, project.environment()
    text, is_new = _text(project)
    insertion.checked(project, text, environ)  # what is faulty already is not touched
    wanted = _answers(arguments, environ)
    dialect = wanted.dialect or _dialect(wanted)
    wanted.name = wanted.name or dialect
    target: dict[str, Any] = {"url": wanted.url, "dialect": dialect}
    target |= {name: value for name, value in (("envkey", wanted.envkey), ("model", arguments.model)) if value}
    how: dict[str, Any] = {"default": is_new or arguments.default, "force": arguments.force}
    environ = {**environ, **({wanted.envkey: wanted.key} if wanted.envkey and wanted.key else {})}
    config = insertion.checked(project, insertion.with_target(text, wanted.name, target, **how), environ)
    comments = {}
    if not arguments.no_probe:
        capabilities, comment = _probed(project, config, wanted)
        target |= {"capabilities": capabilities} if capabilities else {}
        comments["capabilities"] = comment
    after = insertion.with_target(text, wanted.name, target, comments=comments, **how)
    insertion.checked(project, after, environ)
    if wanted.secret and wanted.envkey:
        insertion.save_key(ENV_FILE, wanted.envkey, wanted.secret)
    insertion.write(arguments.config, after)
    _told(project, wanted, config, is_new or arguments.default, environ)
    return 0


# --- the questions


def _answers(arguments: Any, environ: Mapping[str, str]) -> Wanted:
    """What the flags say, and the terminal where they leave it open. Raises ConfigError naming the flags that are missing."""
    asks = sys.stdin.isatty()
    what = arguments.dialect or ""
    if not what and not arguments.url and asks:
        what = _ask(f"What is behind? {', '.join(PROVIDERS)}, or its url", "")
    url, what = arguments.url or (what if "://" in what else ""), "" if "://" in what else what.lower()
    provider = _provider(what)
    if not url and asks:
        url = _ask("Where is it?", provider.url)
    url = url or provider.url
    url = url if url.endswith("://") else url.rstrip("/")
    if not url:
        raise ConfigError(["init: there is no terminal to ask: say --url URL, or --dialect NAME for where NAME usually is"])
    fault = None if url.startswith(("demo://", "command://")) else url_fault(url)
    if fault:
        raise ConfigError([f"--url: {fault}"])
    host = urlsplit(url).hostname or ""
    name = arguments.name or what or ("" if LOCAL.fullmatch(host) else re.sub(r"[^a-z0-9_.-]+", "-", host.lower()))
    envkey, key, secret = _key(arguments, provider.envkey, environ, asks)
    return Wanted(name, url, provider.dialect or None, envkey, key, secret)


def _provider(what: str) -> Provider:
    if what in PROVIDERS or not what:
        return PROVIDERS.get(what) or Provider("", "")
    if what in dialects.names():
        return Provider(what, "")
    raise ConfigError([f"--dialect: {what!r} is not known{meant(what, [*PROVIDERS, *dialects.names()])}"])


def _key(
    arguments: Any, usual: str | None, environ: Mapping[str, str], asks: bool
) -> tuple[str | None, str | None, str | None]:
    """(variable, key, key to save). The key of a variable that is not set is asked for, without showing it."""
    name = arguments.envkey
    if name is None and asks and not arguments.yes:
        name = _ask("Which environment variable holds its key? (- for none)", usual or "-")
    elif name is None:
        name = usual if usual in environ or arguments.save_key else "-"
    if name in ("-", "", None):
        return None, None, None
    if not VARIABLE.fullmatch(name):
        raise ConfigError(["--envkey: must be the name of an environment variable, not the key itself"])
    if name in environ and not arguments.save_key:
        return name, environ[name], None
    secret = ""
    if arguments.save_key or asks:
        prompt = f"{name} is not set. Its value, to be put into {ENV_FILE} (empty: not now): "
        secret = getpass.getpass(prompt) if asks else sys.stdin.readline().strip()
    if not secret and not arguments.no_probe:
        raise ConfigError([f"{name} is not set: export it, put it into {ENV_FILE}, or go on with --no-probe"])
    return name, secret or None, secret or None


def _ask(question: str, usual: str) -> str:
    return input(f"{question} [{usual}] " if usual else f"{question}: ").strip() or usual


# --- the backend


def _dialect(wanted: Wanted) -> str:
    found, how = probe.dialect_of(wanted.url, wanted.key)
    _row("speaks", f"{found} (told by {how})")
    return found


def _row(name: str, said: str) -> None:
    print(f"  {name:<{WIDTH}}{said}", flush=True)


def _probed(project: Project, config: Config, wanted: Wanted) -> tuple[dict[str, Any], str]:
    """The capabilities to write, and the comment beside them. Prints each as it is found out."""
    arguments, target = project.arguments, config.targets[wanted.name]
    print(
        f"asking {wanted.url} what it honours: at most {probe.QUESTIONS} short questions, about {probe.cost()} tokens; "
        "--no-probe leaves that out",
        flush=True,
    )
    if sys.stdin.isatty() and not arguments.yes and _ask("Go on? (y/n)", "y").lower() not in ("y", "yes"):
        return {}, "not asked"
    backend = probe.Backend(target, config.commands)
    try:
        names, listing = probe.models_of(backend)
        model = arguments.model or probe.model_among(names) or next(iter(names), "default")
        _row("model", f"{model} (of {len(names)}; --model asks for another)" if names else model)
        found = list(_shown(probe.findings(backend, model, probe.model_among(names, embedder=True))))
    finally:
        backend.close()
    if not any(finding.honoured for finding in found):
        raise ConfigError(
            [f"{wanted.url} does not answer: {found[0].why}", "nothing was written; --no-probe writes it all the same"]
        )
    context = probe.context_of(target, model, listing)
    _row("context", str(context) if context else "not told")
    sure = {finding.name: finding.honoured for finding in found if finding.honoured is not None}
    usage = {1: "yes", 0: "no"}.get(sure.pop("usage", -1), "not told")
    sure.pop("chat")
    return {**sure, **({"context": context} if context else {})}, f"as {model} answered; usage in streams: {usage}"


def _shown(findings: Any) -> Any:
    for finding in findings:
        said = {True: "yes", False: "no", None: "not clear"}[finding.honoured]
        _row(finding.name.replace("_", " "), f"{said}: {finding.why}" if finding.why else said)
        yield finding


# --- the file


def _text(project: Project) -> tuple[str, bool]:
    """The configuration as it is, or as the template has it, and whether it is new."""
    path = project.arguments.config
    if os.path.exists(path):
        try:
            return read_text(path, "").decode(), False
        except UnicodeDecodeError:
            raise ConfigError([f"{path}: is not UTF-8"]) from None
    return project.shipped("config.template.yaml").decode(), True


def _told(project: Project, wanted: Wanted, config: Config, default: bool, environ: Mapping[str, str]) -> None:
    """What was done, and what to do next."""
    path = project.arguments.config
    print(f"wrote target {wanted.name!r} into {path}" + (f", and its key into {ENV_FILE}" if wanted.secret else ""))
    if wanted.envkey and not wanted.key:
        print(f"still to do: {wanted.envkey} must be exported or stand in {ENV_FILE}")
    if not config.system.masterkey and "MOOLTIPROXY_KEY" not in environ:
        print(f"still to do: MOOLTIPROXY_KEY, which clients send, must stand in {ENV_FILE}: `python -m main check` says how")
    if not default and config.default != wanted.name:
        print(f"clients reach it with the header `target: {wanted.name}`; --default would make it the default one")
    named = "" if path == "config.yaml" else f" --config {path}"
    print(f"next: python -m main check --show{named}   then: python -m main{named}")
