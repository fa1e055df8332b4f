"""llama.cpp's own API has no SDK: requests, and a line reader for its server-sent events."""

from __future__ import annotations

import json
from typing import Any

import requests

FINISH = {"eos": "stop", "word": "stop", "limit": "length"}


def drive(client: str, ask: dict[str, Any]) -> dict[str, Any]:
    return OPERATIONS[ask["op"]](ask)


def post(path: str, ask: dict[str, Any], body: dict[str, Any]) -> requests.Response:
    headers = {"Authorization": f"Bearer {ask['key']}"}
    answer = requests.post(ask["url"] + path, json=body, headers=headers, stream=bool(body.get("stream")), timeout=20)
    if not answer.ok:
        error = answer.json()["error"]
        raise requests.HTTPError(f"{error['type']}: {error['message']}", response=answer)
    return answer


def text(ask: dict[str, Any]) -> dict[str, Any]:
    body = {name: ask[name] for name in ("prompt", "temperature", "top_p", "stop", "stream") if name in ask}
    names = {"limit": "n_predict", "schema": "json_schema"}
    body |= {names[name]: ask[name] for name in names if name in ask} | ({"n_probs": 1} if "logprobs" in ask else {})
    answer = post("/completion", ask, body)
    if not ask.get("stream"):
        events = [answer.json()]
    else:
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith(b"data: ")]
    last = events[-1]
    assert last["stop"] is True
    return {
        "text": "".join(event["content"] for event in events),
        "pieces": sum(bool(event["content"]) for event in events),
        "finish": FINISH[last["stop_type"]],
        "usage": [last["tokens_evaluated"], last["tokens_predicted"]],
        "logprobs": [item["logprob"] for event in events for item in event.get("completion_probabilities", ())],
    }


def embed(ask: dict[str, Any]) -> dict[str, Any]:
    answer = post("/embedding", ask, {"content": ask["input"]}).json()
    return {"vectors": [item["embedding"][0] for item in answer]}


OPERATIONS = {"text": text, "embed": embed}
