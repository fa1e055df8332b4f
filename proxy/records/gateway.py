"""`records.gateway_api`: LLM-Gateway's endpoints under their own names, on the call log and the proxy's own relay.

A model is asked as any client's call would ask it: the same gates, limits, fallback and records. Whoever asks sees the rows of
their own key; the master key sees all.
Source: LLM-Gateway, backend/src/modules/routers and classes.py.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from proxy import wire
from proxy.config import Config
from proxy.errors import BackendError, BadRequest, ProxyError, Refused
from proxy.records.held import CHAT, ask
from proxy.records.marks import text_of
from proxy.records.store import Query, Row, RowRefused, Store, StoreLost, open_store

if TYPE_CHECKING:
    from proxy.pages import Visit

Json = dict[str, Any]
IMAGES = "/v1/images/generations"
CHECKED_S = 15 * 60.0  # how far back /checkchat looks
LOOKED_AT = 500  # calls that a list shows, or that are looked through, at most
PATIENCE_S, LOOK_S = 2.0, 0.1  # a call that has just ended is written a moment later, maybe by another worker
TITLE, SUMMARY = 200, 49  # characters of a title: given, and written by a model
IMAGE_USD = {"1024x1024": 0.020, "512x512": 0.018, "256x256": 0.016}  # of one image, by size
OWN = frozenset(
    ("root_id", "convo_title", "stream", "stream_options")
)  # of a body: not the model's business, or never streamed
PARAMETERS = {"max_new_tokens": "max_tokens", "maxTokens": "max_tokens", "topP": "top_p", "stopSequences": "stop"}
ASK_TITLE = (
    f"Summarise the requests below, all of one conversation, as a title of at most {SUMMARY} characters. "
    "Do not mention the user. Answer with the title alone."
)
METADATA = {
    "chat_summary": "why the user had this conversation, in a few words",
    "description": "what the assistant delivered, in a sentence or two",
    "llm_deliverables": "a list of what was delivered, such as source code or research",
    "satisfaction_score": "0 to 1: how satisfied the user seems with the last answer, judged by the user's messages alone",
    "work_related": "true or false",
    "user_seconds_saved": "seconds of work that the user was probably saved",
    "assistant_seconds_saved": "seconds that a person of the field would have needed for the assistant's answers",
    "assistant_wage": "US dollars an hour that such a person costs",
    "languages": "a list of the languages used, natural ones and programming languages",
}
ASK_METADATA = "Judge the conversation below. Answer with one JSON object and nothing else; its members are:\n" + "\n".join(
    f"- {name}: {meaning}" for name, meaning in METADATA.items()
)


def serve(visit: Visit) -> None:
    """Answers one of ENDPOINTS. Raises ProxyError."""
    method, function = ENDPOINTS[visit.request.path]
    if visit.key() == "open" and "origin" in visit.request.headers:
        raise Refused("a web page needs a key here: this address is open to programs only", code="origin_refused")
    visit.takes(*method)
    visit.reply.json(200, function(visit))


# --- asking a model


def _said(answer: Json) -> str:
    choices = answer.get("choices")
    message = choices[0].get("message") if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None
    said = text_of(message.get("content")) if isinstance(message, dict) else ""
    if not said:
        raise BackendError("the model said nothing")
    return said


def _chat(visit: Visit, given: Json, body: Json, target: str | None = None) -> Json:
    """A chat that belongs to a conversation: `root_id`, or a new one that has the id of its first answer."""
    call = visit.call
    call.conversation, call.title = _root(given, optional=True), _text(given, "convo_title", optional=True)
    answer = ask(visit, CHAT, body, target)
    goes_on = any(isinstance(each, dict) and each.get("role") == "assistant" for each in body["messages"])
    first = answer.get("id")
    if call.conversation is None and not goes_on and isinstance(first, str) and 0 < len(first) <= 64:
        call.conversation = first
    return {**answer, "uuid": _uuid(call.id)}


def chat(visit: Visit) -> Json:
    """POST /chat {model, messages, root_id?, convo_title?, …} → the answer, and `uuid`."""
    given = _given(visit)
    _messages(given)
    return _chat(visit, given, _asked(given))


def chat_sg(visit: Visit) -> Json:
    """POST /chat_sg {inputs: [message…], parameters} or like /chat, for a model on SageMaker."""
    return _translated(visit, "chat_sg", "sagemaker")


def chat_br(visit: Visit) -> Json:
    """POST /chat_br {modelId, prompt, maxTokens, …} or like /chat, for a model on Bedrock."""
    return _translated(visit, "chat_br", "bedrock")


def _translated(visit: Visit, name: str, dialect: str) -> Json:
    given = _given(visit)
    parameters = given.pop("parameters", None) or {}
    if not isinstance(parameters, dict):
        raise BadRequest("`parameters` must be an object", param="parameters")
    told = parameters | given
    messages = told.pop("inputs", None) or told.pop("messages", None)
    if "prompt" in told:
        messages = [{"role": "user", "content": told.pop("prompt")}]
    target = _target(visit, name, dialect)
    model = told.pop("modelId", None) or told.pop("model", None) or visit.generation.config.targets[target].model or dialect
    body: Json = {PARAMETERS.get(key, key): value for key, value in _asked(told).items()}
    body |= {"model": model, "messages": messages}
    _messages(body)
    return _chat(visit, given, body, target)


def _target(visit: Visit, name: str, dialect: str) -> str:
    config = visit.generation.config
    named = getattr(_settings(config), name)
    found = named or next((target.name for target in config.targets.values() if target.dialect == dialect), None)
    if found is None:
        raise Refused(f"no target has `dialect: {dialect}`", status=404, code="path_not_mapped")
    return str(found)


def image_gen(visit: Visit) -> Json:
    """POST /image_gen {prompt, n, size} → the answer."""
    given = _given(visit)
    size, count = given.get("size", "1024x1024"), given.get("n", 1)
    if not isinstance(size, str) or size not in IMAGE_USD:
        raise BadRequest(f"`size` must be one of {', '.join(IMAGE_USD)}", param="size")
    if type(count) is not int or not 1 <= count <= 10:
        raise BadRequest("`n` must be 1 to 10", param="n")
    _text(given, "prompt", most=32_000)
    answer = ask(visit, IMAGES, {**given, "n": count, "size": size}, _settings(visit.generation.config).image_gen)
    visit.call.cost = round(count * IMAGE_USD[size], 3)
    return answer


def update_title_openai(visit: Visit) -> Json:
    """POST /update_title_openai {root_id}: a model writes the title."""
    root, last = _latest(visit)
    asked = [text_of(each.get("content")) for each in last.request["messages"] if each.get("role") == "user"]
    title = " ".join(_summed_up(visit, root, last, ASK_TITLE, "\n\n".join(asked)).strip("\"'“” \n").split())[:SUMMARY].strip()
    _must(_from_store(visit, lambda store: store.rename(root, title, _viewer(visit))))
    return {"message": "Successfully updated the titles!", "new title": title, "new_title": title}


def metadata_check(visit: Visit) -> Json:
    """POST /metadata_check {root_id}: a model judges the conversation."""
    root, last = _latest(visit)
    said = _summed_up(
        visit, root, last, ASK_METADATA, json.dumps([last.request["messages"], last.response], ensure_ascii=False)
    )
    try:
        found = json.loads(said[said.index("{") : said.rindex("}") + 1])
    except ValueError:
        raise BackendError("the model did not answer with a JSON object") from None
    return {"message": "Here is your blob", "metadata": {name: found.get(name) for name in METADATA}}


def _summed_up(visit: Visit, root: str, last: Row, how: str, what: str) -> str:
    """What the conversation's own model says of it, in a call that is no part of it."""
    visit.call.about = root
    messages = [{"role": "system", "content": how}, {"role": "user", "content": what}]
    key = visit.generation.config.keys.get(visit.call.key_name or "")
    target = None if key and key.targets and last.target not in key.targets else last.target  # a pool's member is not the pool
    return _said(ask(visit, CHAT, {"model": last.model_asked, "temperature": 0, "messages": messages}, target))


# --- the call log


def checkchat(visit: Visit) -> Json:
    """POST /checkchat {model, messages, …} → the logged answer to the same request of the last 15 minutes."""
    wanted = _asked(_given(visit))
    query = Query(_viewer(visit), model=wanted.get("model"), status="ok", since=time.time() - CHECKED_S, limit=LOOKED_AT)

    def find(store: Store) -> Row | None:
        for light in store.calls(query):
            row = store.call(light.id)
            if row and isinstance(row.request, dict) and isinstance(row.response, dict) and _asked(row.request) == wanted:
                return row
        return None

    row = _found(visit, find, "no such request was answered in the last 15 minutes")
    return {**row.response, "uuid": _uuid(row.id)}


def update_title(visit: Visit) -> Json:
    """POST /update_title {root_id, convo_title}"""
    given = _given(visit)
    root, title = _root(given), _text(given, "convo_title")
    _found(visit, lambda store: store.rename(root, title, _viewer(visit)), NO_CONVERSATION)
    return {"message": "Successfully updated the titles!", "new_title": title}


def remove_convo(visit: Visit) -> Json:
    """POST /remove_convo {root_id}: out of the lists, not out of the log."""
    root = _root(_given(visit))
    _found(visit, lambda store: store.hide(root, _viewer(visit)), NO_CONVERSATION)
    return {"message": "Successfully updated the convo visibility!"}


def history(visit: Visit) -> Json:
    """GET /history: the chats, newest first."""
    return {"Historical_list": _listed(visit, lambda store, query: store.calls(query))}


def history_v2(visit: Visit) -> Json:
    """GET /history_v2: the latest chat of each conversation that is not hidden, newest first."""
    return {"Historical_Conversations": _listed(visit, lambda store, query: store.conversations(query))}


def _listed(visit: Visit, ask: Callable[[Store, Query], Any]) -> list[Json]:
    _flush(visit)
    query = Query(_viewer(visit), limit=LOOKED_AT)

    def read(store: Store) -> list[Json]:
        rows = (store.call(light.id) for light in ask(store, query) if light.conversation and light.about is None)
        return [_logged(row) for row in rows if row]

    found: list[Json] = _from_store(visit, read)
    return found


def _logged(row: Row) -> Json:
    """A row with the ancestor's columns."""
    tokens = {"prompt_tokens": row.tokens_in, "completion_tokens": row.tokens_out}
    return {
        "id": _uuid(row.id),
        "request": row.request,
        "usage_info": {**tokens, "total_tokens": (row.tokens_in or 0) + (row.tokens_out or 0)},
        "user_name": row.user or row.key_name,
        "title": ", ".join(row.tags),
        "response_time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(row.at + row.total_ms / 1000)),
        "response": row.response,
        "convo_title": row.title,
        "root_gpt_id": row.conversation,
    }


NO_CONVERSATION = "there is no such conversation"


def _latest(visit: Visit) -> tuple[str, Row]:
    """The conversation that is named, and its latest chat."""
    root = _root(_given(visit))
    rows = _found(visit, lambda store: store.conversation(root, _viewer(visit)), NO_CONVERSATION)
    chats = [row for row in rows if isinstance(row.request, dict) and isinstance(row.request.get("messages"), list)]
    return root, _must(chats)[-1]


def _must(found: Any, what: str = NO_CONVERSATION) -> Any:
    if not found:
        raise Refused(what, status=404, code="not_found")
    return found


def _found(visit: Visit, look: Callable[[Store], Any], what: str) -> Any:
    """What is in the log, once all that has just ended is in it."""
    found = _from_store(visit, look)
    if not found:
        _flush(visit)
    until = time.monotonic() + PATIENCE_S
    while not found and time.monotonic() < until:
        found = _from_store(visit, look)
        if not found and visit.generation.config.system.workers == 1:
            break
        with visit.handler.turn:
            time.sleep(LOOK_S)
    return _must(found, what)


def _flush(visit: Visit) -> None:
    """Has this worker's calls written that have ended."""
    records = visit.generation.records
    assert records is not None
    with visit.handler.turn:
        records.kinds["calls"].close()


@lru_cache(maxsize=1)
def _opened(database: str) -> Store:
    return open_store(database)


def _from_store(visit: Visit, look: Callable[[Store], Any]) -> Any:
    records = visit.generation.config.records
    assert records is not None
    assert records.calls is not None
    try:
        with visit.handler.turn:
            return look(_opened(records.calls.database))
    except StoreLost as fault:
        raise ProxyError("the call log cannot be read now", status=503, code="no_call_log") from fault
    except RowRefused:
        raise BadRequest("the call log can hold no such value") from None


# --- what is given


def _settings(config: Config) -> Any:
    assert config.records is not None
    return config.records.gateway


def _viewer(visit: Visit) -> str | None:
    """Whose rows may be seen; None: everybody's."""
    return None if visit.call.key_name == "master" else visit.call.key_name


def _given(visit: Visit) -> Json:
    given = wire.loads_request(visit.request.body.read() or b"null")
    if not isinstance(given, dict):
        raise BadRequest("the body must be a JSON object")
    return given


def _asked(request: Mapping[str, Any]) -> Json:
    return {name: value for name, value in request.items() if name not in OWN}


def _messages(body: Json) -> None:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("`messages` must be a list of messages", param="messages")


def _text(given: Json, name: str, optional: bool = False, most: int = TITLE) -> Any:
    value = given.get(name)
    if optional and value in (None, ""):
        return None
    if not isinstance(value, str) or not 0 < len(value.strip()) <= most:
        raise BadRequest(f"`{name}` must be a text of at most {most} characters", param=name)
    return value.strip()


def _root(given: Json, optional: bool = False) -> Any:
    """A conversation's id: as the log has it, or the `uuid` of its first answer."""
    value = _text(given, "root_id", optional, 64)
    plain = value.replace("-", "") if value else ""
    return plain[:28] if len(plain) == 32 and plain.endswith("0000") else value


def _uuid(id: str) -> str:
    """A call's id in the form of a UUID, as the views on PostgreSQL have it."""
    return str(uuid.UUID(id.ljust(32, "0")))


ENDPOINTS: Mapping[str, tuple[tuple[str, ...], Callable[[Visit], Json]]] = {
    **{
        f"/{function.__name__}": (("POST",), function)
        for function in (
            *(chat, chat_sg, chat_br, checkchat, update_title, update_title_openai, metadata_check, remove_convo, image_gen),
        )
    },
    "/history": (("GET", "HEAD"), history),
    "/history_v2": (("GET", "HEAD"), history_v2),
}
