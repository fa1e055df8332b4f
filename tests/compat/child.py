"""Runs a client's driver: one job in, what the client told its user out. As a script it takes jobs as lines of JSON.

A driver is a file beside this one, with a function `drive(client, ask)` → told; it imports its SDK and nothing of ours.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any


def load(driver: str) -> Any:
    """The driver's module, by its file: a folder of packages on the path cannot stand in the way."""
    spec = importlib.util.spec_from_file_location(f"driver_{driver}", Path(__file__).with_name(f"drive_{driver}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(driver: Any, client: str, ask: dict[str, Any]) -> dict[str, Any]:
    """What the client told; {"error"} for an error of the API as its SDK tells it, {"crash"} for any other exception."""
    try:
        return dict(driver.drive(client, ask))
    except Exception as fault:
        status = status_of(fault)
        if status is None:
            return {"crash": f"{type(fault).__module__}.{type(fault).__name__}: {fault}"[:2000]}
        return {"error": {"status": status, "message": f"{type(fault).__name__}: {fault}"[:4000], "retry": retry_of(fault)}}


def status_of(fault: BaseException | None) -> int | None:
    """The status that an SDK's exception carries, or that of the one it was raised from."""
    while fault is not None:
        for name in ("status_code", "http_status", "code"):
            found = getattr(fault, name, None)
            if isinstance(found, int) and 400 <= found < 600:
                return found
        response = getattr(fault, "response", None)
        if isinstance(getattr(response, "status_code", None), int):
            return int(response.status_code)
        fault = fault.__cause__ or fault.__context__
    return None


def retry_of(fault: BaseException | None) -> str | None:
    """The retry-after header of the reply that an exception stands for."""
    while fault is not None:
        for holder in (getattr(fault, "response", None), fault):
            headers = getattr(holder, "headers", None)
            if headers and hasattr(headers, "get") and (headers.get("retry-after") or headers.get("Retry-After")):
                return str(headers.get("retry-after") or headers.get("Retry-After"))
        fault = fault.__cause__ or fault.__context__
    return None


def main() -> None:
    """Reads jobs {"client", "ask"} until the input ends; what the SDK prints goes to stderr."""
    answers, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr
    os.dup2(2, 1)
    driver = load(sys.argv[1])
    for line in sys.stdin:
        job = json.loads(line)
        answers.write(json.dumps(run(driver, job["client"], job["ask"])) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
