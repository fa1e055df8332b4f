"""The built-in prompters: every cell of the ancestor's table, the official formats, and what all of them agree on."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import prompters
from proxy.errors import BadRequest, MapperError
from proxy.prompts import DEFAULT_SYSTEM, PROMPTERS, prompt_of

HUMAN = {"user": "\n### HUMAN:\n", "assistant": "\n### RESPONSE:\n"}
FALCON = {"user": ">>>QUESTION<<<", "assistant": ">>>ANSWER<<<"}
NODE_RED = {
    "system": "{input}\n",
    "user": "### Instruction: {input}\n",
    "assistant": "### Response: {input}\n",
    "suffix": "### Response:",
    "stop": "###",
}
D = DEFAULT_SYSTEM


def said(*turns):
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool", "d": "developer"}
    return [{"role": roles[role], "content": text} for role, text in turns]


FULL = said(("s", "SYS"), ("u", "Hello"), ("a", "Hi!"), ("u", "Joke"))
HELLO = said(("u", "Hello"))
PREFILL = said(("u", "Hello"), ("a", "Once"))


def prompt(name, messages, template=HUMAN):
    return PROMPTERS[name](messages, {"template": template})


class TestTheAncestorsTable:
    def test_a_conversation(self):
        text = "SYS\n### HUMAN:\nHello\n### RESPONSE:\nHi!\n### HUMAN:\nJoke\n### RESPONSE:\n"
        assert prompt("fromTemplate", FULL) == (text, ["\n### HUMAN:\n"])
        text = "<s>[INST] <<SYS>>\nSYS\n<</SYS>>\n\nHello [/INST] Hi! </s><s>[INST] Joke [/INST]"
        assert prompt("llama2_chat", FULL) == (text, ["[INST]"])

    def test_a_user_alone_gets_the_default_system_text(self):
        assert prompt("fromTemplate", HELLO)[0] == f"{D}\n### HUMAN:\nHello\n### RESPONSE:\n"
        assert prompt("llama2_chat", HELLO)[0] == f"<s>[INST] <<SYS>>\n{D}\n<</SYS>>\n\nHello [/INST]"

    def test_a_system_text_alone(self):
        assert prompt("fromTemplate", said(("s", "SYS")))[0] == "SYS\n### RESPONSE:\n"

    @pytest.mark.parametrize("name", [name for name in PROMPTERS if name != "fromTemplate"])
    def test_a_system_text_alone_is_refused_by_a_models_own_format(self, name):
        with pytest.raises(BadRequest) as caught:
            prompt(name, said(("s", "SYS")))
        assert (caught.value.status, caught.value.param) == (400, "messages")

    @pytest.mark.parametrize("name", PROMPTERS)
    @pytest.mark.parametrize("messages", [[], None, "hi", {}])
    def test_no_conversation_is_refused(self, name, messages):
        with pytest.raises(BadRequest) as caught:
            prompt(name, messages)
        assert caught.value.param == "messages"

    def test_falcon(self):
        text = "SYS>>>QUESTION<<<Hello>>>ANSWER<<<Hi!>>>QUESTION<<<Joke>>>ANSWER<<<"
        assert prompt("fromTemplate", FULL, FALCON) == (text, [">>>QUESTION<<<"])

    def test_preprompt_system_tag_and_start_stand_around_the_system_text(self):
        template = {**FALCON, "preprompt": "<pre>", "system": "<sys>", "start": "<start>"}
        assert prompt("fromTemplate", HELLO, template)[0] == f"<pre><sys>{D}<start>>>>QUESTION<<<Hello>>>ANSWER<<<"


class TestWhatTheAncestorGotWrong:
    def test_llama2_chat_needs_no_template(self):
        assert PROMPTERS["llama2_chat"](HELLO, {}) == prompt("llama2_chat", HELLO)

    def test_neighbouring_users_become_one_llama_2_turn(self):
        text = prompt("llama2_chat", said(("s", "S"), ("u", "One"), ("u", "Two")))[0]
        assert text == "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nOne\n\nTwo [/INST]"

    def test_a_final_assistant_turn_is_continued(self):
        assert prompt("llama2_chat", PREFILL)[0].endswith("Hello [/INST] Once")
        assert prompt("fromTemplate", PREFILL)[0] == f"{D}\n### HUMAN:\nHello\n### RESPONSE:\nOnce"
        assert prompt("fromTemplate", PREFILL, NODE_RED)[0] == "### Instruction: Hello\n### Response: Once"

    def test_an_assistant_that_speaks_first_answers_nothing(self):
        text = prompt("llama2_chat", said(("a", "Hi"), ("u", "Yo")))[0]
        assert text == f"<s>[INST] <<SYS>>\n{D}\n<</SYS>>\n\n [/INST] Hi </s><s>[INST] Yo [/INST]"

    def test_a_tools_result_and_its_call_are_told_in_text(self):
        call = {"id": "c", "type": "function", "function": {"name": "sum", "arguments": '{"a":1}'}}
        messages = [
            *said(("s", "S"), ("u", "Add")),
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": "2"},
            {"role": "tool", "tool_call_id": "c", "content": "no", "is_error": True},
        ]
        text = prompt("chatml", messages)[0]
        assert '<|im_start|>assistant\nTool call: sum({"a":1})<|im_end|>' in text
        assert "<|im_start|>user\nTool result: 2<|im_end|>\n<|im_start|>user\nTool error: no<|im_end|>" in text

    def test_a_list_of_text_parts_is_its_text(self):
        parts = [{"type": "text", "text": "Hel"}, {"type": "refusal", "refusal": "lo"}]
        assert prompt("llama2_chat", [{"role": "user", "content": parts}]) == prompt("llama2_chat", HELLO)


class TestInputTemplates:
    def test_a_conversation(self):
        text = "SYS\n### Instruction: Hello\n### Response: Hi!\n### Instruction: Joke\n### Response:"
        assert prompt("fromTemplate", FULL, NODE_RED) == (text, ["###"])

    def test_no_system_text_is_made_up(self):
        assert prompt("fromTemplate", HELLO, NODE_RED)[0] == "### Instruction: Hello\n### Response:"

    def test_without_suffix_and_stop_the_roles_own_strings_serve(self):
        template = {"user": "<q>{input}</q>", "assistant": "<a>{input}</a>"}
        assert prompt("fromTemplate", HELLO, template) == ("<q>Hello</q><a>", ["<q>"])

    def test_braces_in_a_message_or_a_template_are_only_text(self):
        template = {"user": "{0} {input} {x}", "assistant": "{"}
        assert prompt("fromTemplate", said(("u", "{input} {y}")), template)[0] == "{0} {input} {y} {x}{"

    def test_a_later_system_turn_stands_where_it_was_said(self):
        messages = said(("u", "Hello"), ("s", "Rhyme"))
        assert prompt("fromTemplate", messages, NODE_RED)[0] == "### Instruction: Hello\nRhyme\n### Response:"

    def test_a_blank_stop_is_none(self):
        assert prompt("fromTemplate", HELLO, {"user": "\n{input}", "assistant": ""})[1] == []

    def test_a_template_is_needed(self):
        with pytest.raises(MapperError):
            PROMPTERS["fromTemplate"](HELLO, {})


VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
OFFICIAL = {  # name → (the conversation, its stops, a lone user, a prefill)
    "chatml": (
        "<|im_start|>system\nSYS<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi!<|im_end|>\n"
        "<|im_start|>user\nJoke<|im_end|>\n<|im_start|>assistant\n",
        ["<|im_end|>"],
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nOnce",
    ),
    "llama3": (
        "<|start_header_id|>system<|end_header_id|>\n\nSYS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHi!<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nJoke<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ["<|eot_id|>"],
        "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nOnce",
    ),
    "mistral": (
        "[INST] Hello[/INST] Hi!</s>[INST] SYS\n\nJoke[/INST]",
        ["</s>", "[INST]"],
        "[INST] Hello[/INST]",
        "[INST] Hello[/INST] Once",
    ),
    "gemma": (
        "<start_of_turn>user\nSYS\n\nHello<end_of_turn>\n<start_of_turn>model\nHi!<end_of_turn>\n"
        "<start_of_turn>user\nJoke<end_of_turn>\n<start_of_turn>model\n",
        ["<end_of_turn>"],
        "<start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\n",
        "<start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\nOnce",
    ),
    "alpaca": (
        "SYS\n\n### Instruction:\nHello\n\n### Response:\nHi!\n\n### Instruction:\nJoke\n\n### Response:",
        ["### Instruction:"],
        f"{ALPACA}\n\n### Instruction:\nHello\n\n### Response:",
        f"{ALPACA}\n\n### Instruction:\nHello\n\n### Response:\nOnce",
    ),
    "vicuna": (
        "SYS USER: Hello ASSISTANT: Hi!</s>USER: Joke ASSISTANT:",
        ["</s>", "USER:"],
        f"{VICUNA} USER: Hello ASSISTANT:",
        f"{VICUNA} USER: Hello ASSISTANT: Once",
    ),
}


class TestOfficialFormats:
    @pytest.mark.parametrize("name", OFFICIAL)
    def test_as_published(self, name):
        full, stops, hello, prefill = OFFICIAL[name]
        assert prompt(name, FULL) == (full, stops)
        assert prompt(name, HELLO)[0] == hello
        assert prompt(name, PREFILL)[0] == prefill

    def test_a_templates_bos_comes_first(self):
        assert prompt("mistral", HELLO, {"bos": "<s>"})[0] == "<s>[INST] Hello[/INST]"

    def test_a_later_system_turn_stays_where_the_format_can_have_it(self):
        messages = said(("u", "Hello"), ("a", "Hi!"), ("s", "Rhyme"), ("u", "Joke"))
        assert "<|im_end|>\n<|im_start|>system\nRhyme<|im_end|>\n<|im_start|>user\nJoke" in prompt("chatml", messages)[0]
        assert "<start_of_turn>user\nRhyme\n\nJoke<end_of_turn>" in prompt("gemma", messages)[0]

    def test_leading_system_and_developer_texts_are_one(self):
        assert prompt("gemma", said(("s", "A"), ("d", "B"), ("u", "C")))[0].startswith("<start_of_turn>user\nA\n\nB\n\nC<")


BAD = [
    ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "messages[0].content[0]"),
    ([{"role": "user", "content": ["text"]}], "messages[0].content[0]"),
    ([{"role": "user", "content": 7}], "messages[0].content"),
    ([{"role": "poet", "content": "x"}], "messages[0].role"),
    ([{"role": ["user"], "content": "x"}], "messages[0].role"),
    (["x"], "messages[0].role"),
]


class TestAllOfThem:
    @pytest.mark.parametrize("name", PROMPTERS)
    @pytest.mark.parametrize(("messages", "param"), BAD)
    def test_what_no_text_can_hold_is_refused_by_its_path(self, name, messages, param):
        with pytest.raises(BadRequest) as caught:
            prompt(name, messages)
        assert caught.value.param == param

    @settings(deadline=None)  # other processes share the machine
    @given(
        st.sampled_from(sorted(PROMPTERS)),
        st.sampled_from([HUMAN, NODE_RED]),
        st.lists(st.tuples(st.sampled_from("suatd"), st.text(max_size=6)), max_size=6),
    )
    def test_every_text_is_in_the_prompt_in_order_and_nothing_is_changed(self, name, template, turns):
        messages = said(*((role, f"<{i}:{text}>") for i, (role, text) in enumerate(turns)), ("u", "<last>"))
        before = copy.deepcopy(messages)
        text, stops = prompt(name, messages, template)
        places = [text.find(message["content"]) for message in messages]
        assert messages == before
        assert all(place >= 0 for place in places)
        assert stops
        assert all(isinstance(stop, str) and stop for stop in stops)
        if name != "mistral":  # there a system text moves to the last turn
            assert places == sorted(places)

    def test_the_ones_at_the_top_level_are_the_built_in_ones(self):
        assert {name: getattr(prompters, name) for name in PROMPTERS} == PROMPTERS

    def test_the_example_does_as_its_comment_says(self):
        messages = said(("s", "Be brief."), ("u", "Who are you?"))
        assert prompters.interview(messages, {}) == ("(Be brief.)\nQ: Who are you?\nA:", ["\nQ:"])
        assert prompters.interview([*messages, *said(("a", "I"))], {})[0].endswith("\nA: I")
        with pytest.raises(BadRequest, match="text"):
            prompters.interview([{"role": "user", "content": [{"type": "image_url"}]}], {})


class TestCallingAPrompter:
    def test_one_stop_may_be_a_plain_string(self):
        assert prompt_of(HELLO, {"prompter": lambda messages, cfg: ("x", "stop")}) == ("x", ["stop"])

    @pytest.mark.parametrize("made", [None, "text", ("text",), (None, []), ("text", [1]), ("text", None), 7])
    def test_a_prompter_that_returns_something_else_is_named(self, made):
        def wrong(messages, cfg):
            return made

        with pytest.raises(MapperError, match="wrong"):
            prompt_of(HELLO, {"prompter": wrong})

    def test_none_at_all_is_said(self):
        with pytest.raises(MapperError, match="prompter"):
            prompt_of(HELLO, {})
