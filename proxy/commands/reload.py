"""`python -m main reload`: the running proxy takes the changed configuration, mappers.py and prompters.py."""

from __future__ import annotations

import http.client
import json
import ssl
import sys
from collections.abc import Sequence

from proxy import banner
from proxy.config import CERTIFICATE, Config
from proxy.errors import ConfigError
from proxy.project import Project

TIMEOUT_S = 60.0  # for all of its files to be loaded
NOT_RELOADED = "not reloaded, the old configuration goes on"


def run(project: Project) -> int:
    """Asks the proxy that this configuration describes; prints the faults for which it goes on with the old one."""
    try:
        config = project.overridden(project.config())  # what is faulty is told without asking anybody
    except ConfigError as fault:
        raise ConfigError([NOT_RELOADED, *fault.faults]) from None
    url = banner.address(config, config.system.host, config.system.port)
    try:
        faults = _asked(config)
    except (OSError, http.client.HTTPException, ValueError) as fault:
        print(f"no proxy answers at {url} ({fault}): is it running, and is this its port?", file=sys.stderr)
        return 1
    if faults:
        print("\n".join([NOT_RELOADED, *faults]), file=sys.stderr)
        return 1
    print(f"reloaded: {url}")
    return 0


def _asked(config: Config) -> Sequence[str]:
    """The faults that the running proxy tells. Raises OSError, HTTPException, ValueError when none can be asked."""
    conn = _connection(config)
    try:
        conn.request("POST", "/mooltiproxy/reload", headers={"authorization": f"Bearer {config.master_key}"})
        answer = conn.getresponse()
        told = json.loads(answer.read())
    finally:
        conn.close()
    if not isinstance(told, dict) or told.get("reloaded"):
        return ()
    error = told.get("error")
    refusal = error["message"] if isinstance(error, dict) and "message" in error else f"it answered {answer.status}"
    faults: Sequence[str] = told.get("faults") or (refusal,)
    return faults


def _connection(config: Config) -> http.client.HTTPConnection:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.system.host, config.system.host)
    if not config.system.ssl:
        return http.client.HTTPConnection(host, config.system.port, timeout=TIMEOUT_S)
    context = ssl.create_default_context(cafile=CERTIFICATE)  # that very certificate, whatever name it is for
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return http.client.HTTPSConnection(host, config.system.port, timeout=TIMEOUT_S, context=context)
