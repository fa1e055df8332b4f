"""What a `command://` target takes: the limits that the Node-RED flows had, on requests of the hub."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from proxy.errors import BadRequest

ANY = float("inf")
LIMITS = {  # field → lowest and highest; above the context, max_tokens is capped there
    **dict.fromkeys(("max_tokens", "max_completion_tokens"), (-1, ANY)),
    **dict.fromkeys(("frequency_penalty", "presence_penalty"), (-2, 2)),
    "temperature": (0, 2),
    "top_p": (0, 1),
    "n_cmpl": (1, 16),
    "n": (1, 16),
}
STOPS, STOP_LENGTH = 4, 1000  # a client's stops, and the characters of one


def within_limits(req: Mapping[str, Any], stops: int | None = STOPS) -> None:
    """`stops`: how many there may be, None: any number. Raises BadRequest that names the field; null is as good as absent."""
    for name, (low, high) in LIMITS.items():
        value = req.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            allowed = f"from {low} to {high}" if high < ANY else f"of {low} or more"
            raise BadRequest(f"{name} must be a number {allowed}", param=name)
    model, stop = req.get("model"), req.get("stop")
    if model is not None and not (isinstance(model, str) and model.strip()):
        raise BadRequest("model must be a string that is not empty", param="model")
    given = [stop] if isinstance(stop, str) else [] if stop is None else stop
    if not isinstance(given, list) or not all(isinstance(each, str) and len(each) <= STOP_LENGTH for each in given):
        raise BadRequest(f"stop must be a string, or an array of strings, of at most {STOP_LENGTH} characters", param="stop")
    if stops is not None and len(given) > stops:
        raise BadRequest(f"stop must hold at most {stops} strings", param="stop")


def limitsReqLlamaCpp(ip: Any, cfg: Mapping[str, Any] = {}) -> Any:
    """A hub request, chat or text, without what a program cannot tell. Raises: BadRequest beyond the limits."""
    if not isinstance(ip, dict):
        return ip
    within_limits(ip)
    return {name: value for name, value in ip.items() if name not in ("logprobs", "top_logprobs")}
