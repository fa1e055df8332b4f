"""`records.submit`: each call is posted to a url, with the fields of LLM-Gateway's submissions API.

One thread posts, one call after the other, and tries again what the server may take later. Its queue is bounded; a server that
is down or slow costs submissions, which are counted, never a call.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import requests

from proxy import wire
from proxy.call import Call
from proxy.config import Config
from proxy.records.behind import Behind
from proxy.records.store import Row

Json = dict[str, Any]
ATTEMPTS = 6
BACKOFF_S = (0.25, 8.0)  # the first pause, doubled for each further one, and the longest
LATER = frozenset((408, 425, 429))  # and 5xx: the server may take it later


class Submissions(Behind):
    """The record; see the module."""

    def __init__(self, config: Config) -> None:
        assert config.records
        assert config.records.submit
        super().__init__(config, "submit")
        self._to = config.records.submit
        self._targets = config.targets

    def wants(self, call: Call) -> bool:
        """See Behind: everything that went to a target."""
        return call.target is not None

    def keep(self, rows: Sequence[Row]) -> None:
        """See Behind."""
        with requests.Session() as session:
            session.trust_env = False
            for row in rows:
                fault = self._post(session, wire.dumps(self._fields(row)))
                if fault:
                    self.drop(1, fault)

    def _post(self, session: requests.Session, body: bytes) -> str | None:
        """Why it was not taken, None when it was."""
        pause_s, fault = BACKOFF_S[0], ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, BACKOFF_S[1])
            try:
                status = self._posted(session, body)
            except requests.RequestException as problem:
                fault = f"the server cannot be reached: {type(problem).__name__}"
                continue
            if status < 400:
                return None
            fault = f"the server answers {status}"
            if status < 500 and status not in LATER:
                break
        return fault

    def _posted(self, session: requests.Session, body: bytes) -> int:
        headers = {"content-type": "application/json"}
        with session.post(
            self._to.url, data=body, headers=headers, timeout=self._to.timeout_s, allow_redirects=False, stream=True
        ) as answer:
            return answer.status_code

    def _fields(self, row: Row) -> Json:
        """The ancestor's names; what it called `associated_devices` and `associated_software` stands there under both names."""
        target = self._targets.get(row.target or "")
        devices, software = [row.client] if row.client else [], [row.front]
        answered_at = row.at + row.total_ms / 1000
        return {
            "raw_request": row.request,
            "raw_response": row.response if row.status < 400 else {"error": row.error, "status": row.status},
            "associated_users": [row.user or row.key_name],
            "devices": devices,
            "software": software,
            "associated_devices": devices,
            "associated_software": software,
            "time_submitted": _time(row.at),
            "time_logged": _time(time.time()),
            "response_timestamp": _time(answered_at),
            "llm_model": row.model_served or row.model_asked,
            "llm_provider": target.dialect if target and target.dialect else row.target,
            "api_token_id": row.key_name,
        }


def _time(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at))
