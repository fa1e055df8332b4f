"""Conversation → one prompt text and its stops, for backends that complete text: the built-in prompters.

A prompter is `def name(messages: list[dict], cfg: dict) -> tuple[str, list[str]]`; `cfg["template"]` is the template that the
config names, str to str. What all of these agree on:
  leading system and developer messages are the system text; a later one is user text where the format has no place for it
  a tool's result is user text that says so, a tool call of the assistant is text of its turn
  a final assistant turn is not closed: the model continues it
  a format that alternates gets neighbours of one role as one turn
  BOS, the token that starts a text, is the backend's to add, as llama.cpp and TGI do; for one that does not, a template's
  `bos` adds it (llama2_chat keeps the ancestor's `<s>`)
  no messages, an image or any other part that is no text, nothing but a system text: BadRequest (a template can do the last)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from proxy.errors import BadRequest, MapperError

Prompt = tuple[str, list[str]]
Prompter = Callable[[list[dict[str, Any]], dict[str, Any]], Any]
Turn = tuple[str, str]  # (system | user | assistant, text)

DEFAULT_SYSTEM = "You are a helpful assistant."
SLOT = "{input}"
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "user",
    "function": "user",
}
PLAIN = ("user", "system", "developer")  # roles whose turns are their text


def prompt_of(messages: Any, cfg: Mapping[str, Any]) -> Prompt:
    """What the endpoint's own prompter makes of the messages; a mapper calls it. Raises MapperError on a prompter at fault."""
    prompter = cfg.get("prompter")
    if not callable(prompter):
        raise MapperError("this backend completes text: its endpoint needs a `prompter`")
    made = prompter(messages, cfg)
    text, stops = made if isinstance(made, (tuple, list)) and len(made) == 2 else (None, None)
    stops = [stops] if isinstance(stops, str) else stops
    if not isinstance(text, str) or not isinstance(stops, (tuple, list)) or not all(isinstance(stop, str) for stop in stops):
        raise MapperError(f"the prompter {getattr(prompter, '__name__', '?')} must return a prompt and a list of stops")
    return text, [stop for stop in stops if stop]


# --- reading a conversation


def turns_of(messages: Any) -> list[Turn]:
    """Messages as OpenAI's API has them → turns. Raises BadRequest that names the field."""
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages must be an array with at least one message", param="messages")
    return [_turn(message, i) for i, message in enumerate(messages)]


def _turn(message: Any, i: int) -> Turn:
    role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
    if role in PLAIN and isinstance(content, str):
        return ROLES[role], content
    param = f"messages[{i}]"
    if not isinstance(role, str) or role not in ROLES:
        raise BadRequest(f"{param}.role must be one of {', '.join(ROLES)}", param=f"{param}.role")
    text = _text(content, f"{param}.content")
    if role in ("tool", "function"):
        text = f"Tool {'error' if message.get('is_error') else 'result'}: {text}"
    calls = message.get("tool_calls") if role == "assistant" else None
    said = [_call(call) for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    return ROLES[role], "\n".join([text, *said] if text else said)


def _text(content: Any, param: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise BadRequest(f"{param} must be a string or an array of parts", param=param)
    return "".join(_part(part, f"{param}[{i}]") for i, part in enumerate(content))


def _part(part: Any, param: str) -> str:
    if not isinstance(part, dict):
        raise BadRequest(f"{param} must be an object", param=param)
    text = part.get("refusal" if part.get("type") == "refusal" else "text")
    if not isinstance(text, str):
        raise BadRequest(f"{param}: a text prompt has no place for a part of type {part.get('type')}", param=param)
    return text


def _call(call: Mapping[str, Any]) -> str:
    function = call.get("function")
    called = function if isinstance(function, dict) else {}
    return f"Tool call: {called.get('name', '?')}({called.get('arguments') or ''})"


def split_system(turns: Sequence[Turn], default: str = "", later: str = "user") -> tuple[str, list[Turn]]:
    """The leading system text (`default` without one), and the turns after it, where a system turn becomes a `later` one."""
    head = 0
    while head < len(turns) and turns[head][0] == "system":
        head += 1
    system = "\n\n".join(text for _, text in turns[:head]) if head else default
    return system, [(later if role == "system" else role, text) for role, text in turns[head:]]


def merged(turns: Sequence[Turn]) -> list[Turn]:
    """Neighbours of one role as one turn, a blank line between them."""
    out: list[Turn] = []
    for role, text in turns:
        if out and out[-1][0] == role:
            text = f"{out.pop()[1]}\n\n{text}"
        out.append((role, text))
    return out


# --- templates of the config


def fromTemplate(messages: list[dict[str, Any]], cfg: Mapping[str, Any]) -> Prompt:
    """The endpoint's template: preprompt, system, start, every turn, then what asks for the answer.

    A role's string is a tag before the text (`user: "\\n### HUMAN:\\n"`), or the whole turn with `{input}` where the text
    goes (`user: "### Instruction: {input}\\n"`). The answer is asked for by `suffix`, else by the assistant's string up to
    the text. The stop is `stop`, else the user's string up to the text. Without a system message a template of tags says
    DEFAULT_SYSTEM, as the ancestor did; one with `{input}` says nothing.
    Raises: MapperError without a template; BadRequest as the module says.
    """
    template = template_of(cfg)
    if not template:
        raise MapperError("fromTemplate needs a `template`")
    forms = {role: template.get(role, "") for role in ("system", "user", "assistant")}
    tags_only = not any(SLOT in form for form in forms.values())
    system, turns = split_system(
        turns_of(messages), DEFAULT_SYSTEM if tags_only else "", "system" if forms["system"] else "user"
    )
    continued = turns.pop()[1] if turns and turns[-1][0] == "assistant" else None
    prompt = template.get("preprompt", "") + (_filled(forms["system"], system) if system else "") + template.get("start", "")
    prompt += "".join(_filled(forms[role], text) for role, text in turns)
    if continued is None:
        prompt += template.get("suffix") or forms["assistant"].partition(SLOT)[0]
    else:
        prompt += forms["assistant"].partition(SLOT)[0] + continued
    stop = template.get("stop") or forms["user"].partition(SLOT)[0]
    return prompt, [stop] if stop.strip() else []


def template_of(cfg: Mapping[str, Any]) -> Mapping[str, str]:
    """The endpoint's template, {} without one."""
    return cfg.get("template") or {}


def _filled(form: str, text: str) -> str:
    return form.replace(SLOT, text) if SLOT in form else form + text


# --- the formats that models are trained on


class Format(NamedTuple):
    """How one family of models writes a conversation: what stands before and after the text of each role's turns."""

    user: tuple[str, str]
    assistant: tuple[str, str]
    ask: str  # what makes the model answer
    stops: tuple[str, ...]
    system: tuple[str, str] = ("", "")
    within: str = ""  # "first" or "last": the system text stands in that user turn, there is no system turn
    default_system: str = ""
    alternates: bool = True  # user and assistant take turns; False: any order, a system turn anywhere


CHATML = Format(
    system=("<|im_start|>system\n", "<|im_end|>\n"),
    user=("<|im_start|>user\n", "<|im_end|>\n"),
    assistant=("<|im_start|>assistant\n", "<|im_end|>\n"),
    ask="<|im_start|>assistant\n",
    stops=("<|im_end|>",),
    alternates=False,
)
LLAMA3 = Format(
    system=("<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"),
    user=("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
    assistant=("<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
    ask="<|start_header_id|>assistant<|end_header_id|>\n\n",
    stops=("<|eot_id|>",),
    alternates=False,
)
LLAMA2 = Format(
    system=("<<SYS>>\n", "\n<</SYS>>\n\n"),
    user=("<s>[INST] ", " [/INST]"),
    assistant=(" ", " </s>"),
    ask="",
    stops=("[INST]",),
    within="first",
    default_system=DEFAULT_SYSTEM,
)
MISTRAL = Format(
    system=("", "\n\n"), user=("[INST] ", "[/INST]"), assistant=(" ", "</s>"), ask="", stops=("</s>", "[INST]"), within="last"
)
GEMMA = Format(
    system=("", "\n\n"),
    user=("<start_of_turn>user\n", "<end_of_turn>\n"),
    assistant=("<start_of_turn>model\n", "<end_of_turn>\n"),
    ask="<start_of_turn>model\n",
    stops=("<end_of_turn>",),
    within="first",
)
ALPACA = Format(
    system=("", "\n\n"),
    user=("### Instruction:\n", "\n\n"),
    assistant=("### Response:\n", "\n\n"),
    ask="### Response:",
    stops=("### Instruction:",),
    default_system="Below is an instruction that describes a task. Write a response that appropriately completes the request.",
)
VICUNA = Format(
    system=("", " "),
    user=("USER: ", " "),
    assistant=("ASSISTANT: ", "</s>"),
    ask="ASSISTANT:",
    stops=("</s>", "USER:"),
    default_system="A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
)


def _write(form: Format, messages: Any, cfg: Mapping[str, Any]) -> Prompt:
    system, turns = split_system(turns_of(messages), form.default_system, "user" if form.alternates else "system")
    if not turns:
        raise BadRequest(
            "messages must hold more than a system text: this prompt format has no place for one alone", param="messages"
        )
    if form.alternates:
        turns = merged(turns if turns[0][0] == "user" else [("user", ""), *turns])
    if system and form.within:
        turns = _put_within(form, system, turns)
    elif system:
        turns.insert(0, ("system", system))
    last_role, last_text = turns[-1]
    closed = turns[:-1] if last_role == "assistant" else turns
    prompt = template_of(cfg).get("bos", "")
    for role, text in closed:
        before, after = getattr(form, role)
        prompt += before + text + after
    return prompt + (form.assistant[0] + last_text if last_role == "assistant" else form.ask), list(form.stops)


def _put_within(form: Format, system: str, turns: Sequence[Turn]) -> list[Turn]:
    users = [i for i, (role, _) in enumerate(turns) if role == "user"]
    chosen = users[0 if form.within == "first" else -1]
    text = form.system[0] + system + form.system[1] + turns[chosen][1]
    return [*turns[:chosen], ("user", text), *turns[chosen + 1 :]]


def chatml(messages: list[dict[str, Any]], cfg: Mapping[str, Any]) -> Prompt:
    """ChatML: Qwen, Hermes, Yi and many more. Source: OpenAI's chatml.md; Qwen2.5's chat template."""
    return _write(CHATML, messages, cfg)


def llama3(messages: list[dict[str, Any]], cfg: Mapping[str, Any]) -> Prompt:
    """Llama 3, 3.1, 3.2, 3.3 (`bos: "<|begin_of_text|>"`). Source: Meta, Llama 3 model cards and prompt formats."""
    return _write(LLAMA3, messages, cfg)


def llama2_chat(messages: list[dict[str, Any]], cfg: Mapping[str, Any]) -> Prompt:
    """Llama 2 chat, and DEFAULT_SYSTEM without a system text, as the ancestor did. Source: Meta, Llama 2 prompt format."""
    return _write(LLAMA2, messages, cfg)


def mistral(messages: list[dict[str, Any]], cfg: Mapping[str, Any]) -> Prompt:
    """Mistral and Mixtral with tokenizer V3 (`bos: "<s>"`): the system text opens the last instruction.

    Source: Mistral AI, cookbook, tokenization and chat templates.
    """
    return _write(MISTRAL, messages, cfg)


def gemma(messages: list[dict[str, Any]], cfg: Mapping[str, Any]) -> Prompt:
    """Gemma 1, 2, 3 (`bos: "<bos>"`): no system role, its text opens the first turn. Source: Google, Gemma formatting."""
    return _write(GEMMA, messages, cfg)


def alpaca(messages: list[dict[str, Any]], cfg: Mapping[str, Any]) -> Prompt:
    """Alpaca, with its own preamble where there is no system text. Source: Stanford Alpaca, README, data release."""
    return _write(ALPACA, messages, cfg)


def vicuna(messages: list[dict[str, Any]], cfg: Mapping[str, Any]) -> Prompt:
    """Vicuna 1.1 to 1.5, with its own preamble where there is no system text. Source: FastChat, Vicuna weights."""
    return _write(VICUNA, messages, cfg)


PROMPTERS: Mapping[str, Prompter] = {
    prompter.__name__: prompter for prompter in (fromTemplate, llama2_chat, chatml, llama3, mistral, gemma, alpaca, vicuna)
}
