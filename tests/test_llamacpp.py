"""llama.cpp's native API: the laws of its mappers, its grammar, and its double as the backend."""

from __future__ import annotations

import base64
import contextlib
import copy

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.dialects import Upstream, load, mapper, route_of
from proxy.dialects import llamacpp as it
from proxy.dialects.openai import fold
from proxy.dialects.openai import grammar as openai_grammar
from proxy.errors import BackendError, BadRequest, MapperError, ProxyError
from proxy.prompts import chatml, llama2_chat
from proxy.wire import read_sse
from tests.doubles.llamacpp import MARKER, LlamaCppDouble

CFG = {"id": "x" * 28, "now": 1700000000, "prompter": chatml}
PNG = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def user(text, **more):
    return {"model": "m", "messages": [{"role": "user", "content": text}], **more}


@pytest.fixture(scope="module")
def double():
    with LlamaCppDouble() as started:
        yield started


@pytest.fixture(scope="module")
def raw_stream(double):
    return post(double, "/completion", it.chatReqOpenAItoLlamaCpp(user("say é", stream=True), CFG)).content


def post(double, path, body):
    return requests.post(double.url + path, json=body, timeout=10)


def ask(double, req, cfg=CFG, kind="chat"):
    """One whole call as the relay makes it, the `before` step included → the hub's answer, or chunks."""
    cfg = {**cfg, "request": req}
    body = mapper(f"{kind}ReqOpenAItoLlamaCpp")(req, cfg)
    if "messages" in body:
        made = post(double, "/apply-template", it.templateReqLlamaCpp(body, cfg)).json()
        body = it.templateAnsLlamaCpp(made, {**cfg, "request": body})
    reply = post(double, it.DIALECT.backend[kind].path, body)
    assert reply.status_code == 200, reply.text
    if req.get("stream"):
        return list(mapper(f"{kind}StreamLlamaCpptoOpenAI")(read_sse([reply.content]), cfg))
    return mapper(f"{kind}AnsLlamaCpptoOpenAI")(reply.json(), cfg)


class TestChatRequests:
    def test_every_field_has_its_name_there(self):
        more = {"top_k": 4, "min_p": 0.1, "typical_p": 0.9, "repetition_penalty": 1.1, "max_tokens": 7, "stop": "END", "n": 2}
        more |= {
            "seed": 3,
            "temperature": 0,
            "top_p": 1.0,
            "presence_penalty": 0.5,
            "frequency_penalty": 0,
            "logit_bias": {"5": -1},
        }
        body = it.chatReqOpenAItoLlamaCpp(user("hi", stream=True, logprobs=True, top_logprobs=3, user="me", **more), CFG)
        assert body == {
            **{name: more[name] for name in ("top_k", "min_p", "typical_p", "seed", "temperature", "top_p", "logit_bias")},
            **{name: more[name] for name in ("presence_penalty", "frequency_penalty")},
            "prompt": "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
            "model": "m",
            "stream": True,
            "n_predict": 7,
            "n_cmpl": 2,
            "repeat_penalty": 1.1,
            "n_probs": 3,
            "stop": ["END", "<|im_end|>"],
        }

    def test_options_of_llama_cpp_that_the_client_adds_go_through(self):
        own = {"grammar": 'root ::= "a"', "cache_prompt": False, "id_slot": 1, "mirostat": 2, "repeat_penalty": 1.3}
        body = it.chatReqOpenAItoLlamaCpp(user("hi", repetition_penalty=1.1, unknown=1, **own), CFG)
        assert {name: body[name] for name in own} == own
        assert "unknown" not in body

    @pytest.mark.parametrize(
        ("form", "schema"),
        [
            ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array"}}}, {"type": "array"}),
            ({"type": "json_object"}, {"type": "object"}),
            ({"type": "text"}, None),
        ],
    )
    def test_a_response_format_is_a_json_schema(self, form, schema):
        assert it.chatReqOpenAItoLlamaCpp(user("hi", response_format=form), CFG).get("json_schema") == schema

    def test_tools_that_may_be_called_are_refused_and_others_fall_away(self):
        with pytest.raises(BadRequest) as caught:
            it.chatReqOpenAItoLlamaCpp(user("hi", tools=[TOOL]), CFG)
        assert caught.value.param == "tools"
        assert "tools" not in it.chatReqOpenAItoLlamaCpp(user("hi", tools=[TOOL], tool_choice="none"), CFG)

    def test_logprobs_without_a_number_ask_for_one(self):
        assert it.chatReqOpenAItoLlamaCpp(user("hi", logprobs=True), CFG)["n_probs"] == 1
        assert "n_probs" not in it.chatReqOpenAItoLlamaCpp(user("hi", logprobs=False, top_logprobs=3), CFG)

    def test_a_wrong_type_is_named(self):
        with pytest.raises(BadRequest) as caught:
            it.chatReqOpenAItoLlamaCpp(user("hi", temperature="hot"), CFG)
        assert caught.value.param == "temperature"


class TestTheServersOwnTemplate:
    def test_messages_stand_in_the_prompts_place_until_it_has_answered(self):
        messages = [
            {"role": "developer", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]},
            {"role": "user", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]},
            {"role": "assistant", "content": None, "thinking_blocks": [], "tool_calls": [
                {"id": "i", "type": "function", "function": {"name": "f", "arguments": "{}"}, "extra_content": {}}]},
            {"role": "tool", "tool_call_id": "i", "content": "no", "is_error": True},
        ]  # fmt: skip
        req = {"model": "m", "messages": messages, "max_tokens": 5, "chat_template_kwargs": {"enable_thinking": False}}
        body = it.chatReqOpenAItoLlamaCpp(req, {})
        asked = it.templateReqLlamaCpp(body)
        call = {"id": "i", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        assert asked == {
            "model": "m",
            "chat_template_kwargs": {"enable_thinking": False},
            "messages": [
                {"role": "system", "content": "a"},
                {"role": "user", "content": "bc"},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "content": "Error: no", "tool_call_id": "i"},
            ],
        }
        final = it.templateAnsLlamaCpp({"prompt": "P"}, {"request": body})
        assert final == {"prompt": "P", "model": "m", "n_predict": 5}

    def test_images_and_sounds_follow_the_markers_in_order(self, double):
        sound = {"type": "input_audio", "input_audio": {"data": "c291bmQ=", "format": "wav"}}
        parts = [{"type": "text", "text": "see "}, {"type": "image_url", "image_url": {"url": PNG}}, sound]
        answer = ask(double, {"messages": [{"role": "user", "content": parts}]}, {})
        assert answer["choices"][0]["message"]["content"] == "Hello world!"
        prompt = double.requests[-1][3]["prompt"]
        assert prompt["prompt_string"].count(MARKER) == 2
        assert prompt["multimodal_data"] == [PNG.partition(",")[2], "c291bmQ="]

    @pytest.mark.parametrize("url", ["https://example.com/cat.png", "file:///etc/passwd"])
    def test_an_image_that_would_have_to_be_fetched_is_refused(self, url):
        with pytest.raises(BadRequest) as caught:
            it.chatReqOpenAItoLlamaCpp(user([{"type": "image_url", "image_url": {"url": url}}]), {})
        assert caught.value.param == "messages[0].content[0]"

    def test_an_image_is_refused_where_a_prompter_writes_the_prompt(self):
        with pytest.raises(BadRequest):
            it.chatReqOpenAItoLlamaCpp(user([{"type": "image_url", "image_url": {"url": PNG}}]), CFG)

    @pytest.mark.parametrize("answer", [None, [], {}, {"prompt": 7}])
    def test_no_prompt_is_the_backends_fault(self, answer):
        with pytest.raises(BackendError):
            it.templateAnsLlamaCpp(answer, {"request": {"messages": []}})


class TestAnswers:
    def test_a_chat(self, double):
        answer = ask(double, user("say hello"))
        prompt_tokens = len(double.requests[-1][3]["prompt"])
        assert answer == {
            "id": "chatcmpl-" + "x" * 28,
            "object": "chat.completion",
            "created": 1700000000,
            "model": "m",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello world!"}, "finish_reason": "stop"}],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": 6,
                "total_tokens": prompt_tokens + 6,
                "prompt_tokens_details": {"cached_tokens": prompt_tokens // 2},
                "completion_tokens_details": {"reasoning_tokens": 0},
            },
        }

    def test_a_limit_is_length(self, double):
        assert ask(double, user("count up", max_tokens=2))["choices"][0]["finish_reason"] == "length"

    def test_the_clients_stop_is_told_and_the_prompters_is_not(self, double):
        choice = ask(double, user("count up", stop=[" three"]))["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"], choice["stop_sequence"]) == (
            " one two",
            "stop",
            " three",
        )
        own = {**CFG, "prompter": lambda messages, cfg: ("count up", [" two"])}
        choice = ask(double, user("x", stop=[" three", " two and"]), own)["choices"][0]
        assert choice == {"index": 0, "message": {"role": "assistant", "content": " one"}, "finish_reason": "stop"}

    def test_n_answers_share_one_prompt(self, double):
        one, three = ask(double, user("say hello")), ask(double, user("say hello", n=3))
        assert [choice["index"] for choice in three["choices"]] == [0, 1, 2]
        assert three["usage"]["prompt_tokens"] == one["usage"]["prompt_tokens"]
        assert three["usage"]["completion_tokens"] == 3 * one["usage"]["completion_tokens"]

    def test_logprobs(self, double):
        first = ask(double, user("say hello", logprobs=True, top_logprobs=2))["choices"][0]["logprobs"]["content"][0]
        assert (first["token"], first["bytes"], first["logprob"]) == ("Hel", [72, 101, 108], -0.25)
        assert [top["token"] for top in first["top_logprobs"]] == ["Hel", "?"]

    @pytest.mark.parametrize(
        ("result", "finish"),
        [
            ({"stop_type": "eos"}, "stop"),
            ({"stop_type": "word", "stopping_word": "x"}, "stop"),
            ({"stop_type": "limit", "truncated": True}, "length"),
            ({"stop_type": "none"}, "stop"),
            ({"stop_type": "of a new kind"}, "stop"),
            ({"stop_type": 7}, "stop"),
            ({"stopped_limit": True}, "length"),
            ({"stopped_eos": True}, "stop"),
            ({}, "stop"),
        ],
    )
    def test_every_way_to_stop(self, result, finish):
        whole = {"content": "hi", "stop": True, **result}
        assert it.chatAnsLlamaCpptoOpenAI(whole)["choices"][0]["finish_reason"] == finish
        assert fold(it.chatStreamLlamaCpptoOpenAI([whole]))["choices"][0]["finish_reason"] == finish

    @pytest.mark.parametrize("answer", [None, [], {}, "text", [None], {"error": {"code": 503, "message": "Loading model"}}])
    def test_what_is_no_answer_is_the_backends_fault(self, answer):
        for ans in (it.chatAnsLlamaCpptoOpenAI, it.textAnsLlamaCpptoOpenAI, it.embedAnsLlamaCpptoOpenAI):
            with pytest.raises(BackendError):
                ans(answer)


REQUESTS = {
    "hello": user("say hello"),
    "limit": user("count up", max_tokens=3),
    "stop": user("count up", stop=" four"),
    "several": user("say hello", n=2),
    "logprobs": user("say hello", logprobs=True, top_logprobs=2),
    "halves of code points": user("say é"),
    "nothing": user("say hello", max_tokens=0),
}


class TestStreams:
    @pytest.mark.parametrize("name", REQUESTS)
    @pytest.mark.parametrize("cfg", [CFG, {**CFG, "prompter": None}], ids=["prompter", "template"])
    def test_folded_it_is_the_answer(self, double, name, cfg):
        req = REQUESTS[name]
        assert fold(ask(double, {**req, "stream": True}, cfg)) == ask(double, req, cfg)

    @pytest.mark.parametrize("name", REQUESTS)
    def test_an_openai_client_may_get_it(self, double, name):
        chunks = ask(double, {**REQUESTS[name], "stream": True})
        assert list(openai_grammar(chunks, {"kind": "chat"})) == chunks
        assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
        assert chunks[-1]["usage"]["completion_tokens"] > 0 or name == "nothing"

    def test_it_flows(self):
        came = []

        def events():
            for n in range(3):
                came.append(n)
                yield {"content": str(n), "stop": False}

        chunks = it.chatStreamLlamaCpptoOpenAI(events())
        next(chunks)
        assert next(chunks)["choices"][0]["delta"]["content"] == "0"
        assert came == [0]

    def test_a_cut_one_has_no_finish(self, double):
        chunks = ask(double, user("cut stream", stream=True))
        assert fold(chunks)["choices"][0] | {"index": 0} == {
            "index": 0,
            "message": {"role": "assistant", "content": "half"},
            "finish_reason": None,
        }
        with pytest.raises(BackendError):
            list(openai_grammar(chunks))

    def test_an_error_event_is_the_backends_error(self, double):
        with pytest.raises(BackendError) as caught:
            ask(double, user("fail stream", stream=True))
        assert (caught.value.status, caught.value.message) == (500, "the model broke")

    def test_the_null_between_two_prompts_is_nothing(self, double):
        chunks = ask(double, {"model": "m", "prompt": ["say hello", "count up"], "stream": True}, kind="text")
        whole = ask(double, {"model": "m", "prompt": ["say hello", "count up"]}, kind="text")
        said = ["".join(c["text"] for e in chunks for c in e["choices"] if c["index"] == i) for i in (0, 1)]
        assert said == [choice["text"] for choice in whole["choices"]] == ["Hello world!", " one two three four five six"]
        assert chunks[-1]["usage"] == whole["usage"]

    @settings(deadline=None)  # other processes share the machine
    @given(st.lists(st.integers(0, 2000), max_size=8))
    def test_any_split_of_the_bytes_gives_the_same_events(self, raw_stream, cuts):
        cuts = sorted(cut % len(raw_stream) for cut in cuts)
        pieces = [raw_stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw_stream)], strict=True)]
        assert list(it.chatStreamLlamaCpptoOpenAI(read_sse(pieces))) == list(
            it.chatStreamLlamaCpptoOpenAI(read_sse([raw_stream]))
        )


class TestText:
    def test_prompts_of_every_shape_are_as_good_there(self):
        for prompt in ("hi", ["hi", "ho"], [1, 2], [[1], [2]]):
            assert it.textReqOpenAItoLlamaCpp({"prompt": prompt, "max_tokens": 3}) == {"prompt": prompt, "n_predict": 3}

    def test_echo_puts_the_prompt_first(self, double):
        req = {"model": "m", "prompt": "say hello", "echo": True}
        assert ask(double, req, kind="text")["choices"][0]["text"] == "say helloHello world!"
        chunks = ask(double, {**req, "stream": True}, kind="text")
        assert "".join(c["text"] for e in chunks for c in e["choices"]) == "say helloHello world!"

    def test_logprobs_are_four_lists(self, double):
        req = {"model": "m", "prompt": "say hello", "logprobs": 2}
        logprobs = ask(double, req, kind="text")["choices"][0]["logprobs"]
        assert logprobs["tokens"] == ["Hel", "lo", " wor", "ld", "!"]
        assert logprobs["text_offset"] == [9, 12, 14, 18, 20]  # the prompt counts
        assert logprobs["top_logprobs"][0] == {"Hel": -0.25, "?": -1.5}

    @pytest.mark.parametrize(
        ("more", "param"),
        [
            ({"prompt": None}, "prompt"),
            ({"prompt": []}, "prompt"),
            ({"suffix": "x"}, "suffix"),
            ({"best_of": 2}, "best_of"),
            ({"echo": True, "logprobs": 1}, "echo"),
            ({"echo": True, "prompt": [1, 2]}, "echo"),
            ({"stop": [1]}, "stop"),
            ({"n": "2"}, "n"),
        ],
    )
    def test_what_cannot_be_done_is_refused(self, more, param):
        with pytest.raises(BadRequest) as caught:
            it.textReqOpenAItoLlamaCpp({"prompt": "hi", **more})
        assert caught.value.param == param

    def test_a_response_format_is_a_json_schema_here_too(self):
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "null"}}}
        assert it.textReqOpenAItoLlamaCpp({"prompt": "hi", "response_format": form})["json_schema"] == {"type": "null"}


class TestEmbeddings:
    def test_the_nested_answer_is_flat_in_the_hub(self, double):
        req = {"model": "m", "input": ["hi", "there"]}
        answer = ask(double, req, kind="embed")
        assert [item["embedding"] for item in answer["data"]] == [[2, 0.5, -1.0, 0.0], [5, 0.5, -1.0, 1.0]]
        encoded = ask(double, {**req, "encoding_format": "base64"}, kind="embed")["data"][1]["embedding"]
        assert base64.b64decode(encoded)[:4] == b"\x00\x00\xa0\x40"

    def test_the_flat_answer_of_older_servers(self):
        assert it.embedAnsLlamaCpptoOpenAI({"embedding": [1.0, 2.0]})["data"][0]["embedding"] == [1.0, 2.0]

    def test_a_vector_per_token_is_said_to_be_no_embedding(self):
        with pytest.raises(BackendError, match="pooling"):
            it.embedAnsLlamaCpptoOpenAI([{"index": 0, "embedding": [[1.0], [2.0]]}])

    def test_a_llama_client_gets_it_nested_again(self):
        body = {"content": ["hi", "ho"]}
        assert it.embedReqLlamaCpptoOpenAI(body) == {"input": ["hi", "ho"], "encoding_format": "float"}
        assert it.embedReqLlamaCpptoOpenAI({"input": "hi", "content": "no"})["input"] == "hi"
        hub = {"data": [{"index": 1, "embedding": [2.0]}, {"index": 0, "embedding": "AACAPw=="}]}
        assert it.embedAnsOpenAItoLlamaCpp(hub) == [{"index": 0, "embedding": [[1.0]]}, {"index": 1, "embedding": [[2.0]]}]

    @pytest.mark.parametrize("body", [{}, {"content": ""}, {"content": []}, {"content": 7}])
    def test_nothing_to_embed_is_refused(self, body):
        with pytest.raises(BadRequest):
            it.embedReqLlamaCpptoOpenAI(body)
        with pytest.raises(BadRequest):
            it.embedReqOpenAItoLlamaCpp({"input": body.get("content")})


class TestCounting:
    def test_the_prompts_tokens_are_counted(self, double):
        prompt = chatml(user("hi")["messages"], {})[0]
        assert ask(double, user("hi"), kind="count") == {"input_tokens": len(prompt) + 1}
        assert ask(double, user("hi"), {}, kind="count") == {"input_tokens": len(prompt) + 1}

    def test_tools_count(self, double):
        bare = ask(double, user("hi"), kind="count")["input_tokens"]
        assert ask(double, user("hi", tools=[TOOL]), kind="count")["input_tokens"] > bare
        ask(double, user("hi", tools=[TOOL]), {}, kind="count")
        assert double.requests[-2][3]["tools"] == [TOOL]

    @pytest.mark.parametrize("answer", [None, {}, {"tokens": 7}, []])
    def test_no_tokens_are_the_backends_fault(self, answer):
        with pytest.raises(BackendError):
            it.countAnsLlamaCpptoOpenAI(answer)


class TestModelsAndLocalAnswers:
    def test_models(self, double):
        listed = it.modelsAnsLlamaCpptoOpenAI(requests.get(double.url + "/v1/models", timeout=10).json())
        entry = {"id": "double", "object": "model", "created": 1, "owned_by": "llamacpp"}
        assert listed == {"object": "list", "data": [entry]}
        assert it.modelsAnsLlamaCpptoOpenAI({"data": [None, {}, {"id": 7}]})["data"] == []
        with pytest.raises(BackendError):
            it.modelsAnsLlamaCpptoOpenAI({"models": []})

    def test_health_and_props_where_the_backend_is_another_api(self):
        assert it.healthAnsLlamaCpp({}) == {"status": "ok"}
        props = it.propsAnsLlamaCpp({}, {"aliases": ["gpt"]})
        assert (props["model_path"], props["total_slots"]) == ("gpt", 1)

    def test_the_way_there_is_known(self):
        dialect = load("llamacpp")
        assert dialect.backend["chat"] == Upstream("/completion", before="template")
        assert route_of("llamacpp", "POST", "/completion").kind == "text"
        for route in dialect.routes:
            assert route.answer is None or callable(getattr(it, route.answer))
        for kind, functions in {
            "chat": "Req Ans Stream",
            "text": "Req Ans Stream",
            "embed": "Req Ans",
            "count": "Req Ans",
        }.items():
            for function in functions.split():
                assert mapper(f"{kind}{function}" + ("OpenAItoLlamaCpp" if function == "Req" else "LlamaCpptoOpenAI"))
        for name in ("textReqLlamaCpptoOpenAI", "textAnsOpenAItoLlamaCpp", "textStreamOpenAItoLlamaCpp", "templateReqLlamaCpp"):
            assert mapper(name)


CLIENT = {"prompt": "hi", "n_predict": 5, "temperature": 0.5, "top_k": 3, "repeat_penalty": 1.2, "stop": ["x"], "n_probs": 2}


class TestClientsOfLlamaCpp:
    def test_a_request(self):
        more = {"stream": True, "seed": -1, "cache_prompt": True, "logit_bias": [[5, -1.5], [6, False], ["word", 1]]}
        assert it.textReqLlamaCpptoOpenAI({**CLIENT, **more, "json_schema": {"type": "null"}, "model": "m", "stop": ["x"]}) == {
            "prompt": "hi",
            "model": "m",
            "max_tokens": 5,
            "temperature": 0.5,
            "top_k": 3,
            "repetition_penalty": 1.2,
            "stop": ["x"],
            "logprobs": 2,
            "stream": True,
            "stream_options": {"include_usage": True},
            "logit_bias": {"5": -1.5, "6": -100},
            "response_format": {"type": "json_schema", "json_schema": {"name": "output", "schema": {"type": "null"}}},
        }

    @pytest.mark.parametrize("seed", [-1, 2**32 - 1])
    def test_no_limit_and_any_seed_are_not_said(self, seed):
        assert it.textReqLlamaCpptoOpenAI({"prompt": [1, 2], "n_predict": -1, "seed": seed}) == {"prompt": [1, 2]}
        assert it.textReqLlamaCpptoOpenAI({"prompt": {"prompt_string": "a"}, "seed": 5}) == {"prompt": "a", "seed": 5}

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({}, "prompt"),
            ({"prompt": []}, "prompt"),
            ({"prompt": [1, "a"]}, "prompt"),
            ({"prompt": {"prompt_string": "a", "multimodal_data": ["x"]}}, "prompt"),
            ({"prompt": "a", "n_predict": "5"}, "n_predict"),
            ({"prompt": "a", "json_schema": "x"}, "json_schema"),
            ({"prompt": "a", "logit_bias": [5]}, "logit_bias"),
        ],
    )
    def test_a_wrong_one_is_refused_by_the_fields_name(self, body, param):
        with pytest.raises(BadRequest) as caught:
            it.textReqLlamaCpptoOpenAI(body)
        assert caught.value.param == param

    @pytest.mark.parametrize("name", ["hello", "limit", "logprobs"])
    @pytest.mark.parametrize("stream", [False, True])
    def test_there_and_back_an_answer_is_the_same(self, double, name, stream):
        req = {"model": "m", "prompt": "say hello", "max_tokens": {"limit": 3}.get(name, 50)}
        req |= {"logprobs": 2} if name == "logprobs" else {}
        there = it.textAnsOpenAItoLlamaCpp(ask(double, req, kind="text"), {"request": {"prompt": "say hello"}})
        native = post(double, "/completion", it.textReqOpenAItoLlamaCpp(req)).json()
        if stream:
            chunks = ask(double, {**req, "stream": True}, kind="text")
            events = list(it.textStreamOpenAItoLlamaCpp(chunks, {"request": {"prompt": "say hello"}}))
            assert list(it.grammar(events)) == events
            there = {**events[-1], "content": "".join(event["content"] for event in events)}
        kept = (
            "content",
            "stop",
            "stop_type",
            "stopping_word",
            "tokens_evaluated",
            "tokens_predicted",
            "timings",
            "prompt",
            "truncated",
        )
        assert {field: there[field] for field in kept} == {field: native[field] for field in kept}

    def test_several_choices_are_an_array(self):
        choice = {"text": "a", "index": 0, "finish_reason": "stop", "stop_sequence": "!"}
        usage = {"prompt_tokens": 3, "completion_tokens": 4}
        answer = it.textAnsOpenAItoLlamaCpp({"choices": [choice, {**choice, "index": 1}], "usage": usage})
        assert [item["tokens_predicted"] for item in answer] == [0, 4]
        assert (answer[0]["stop_type"], answer[0]["stopping_word"]) == ("word", "!")
        single = it.textAnsOpenAItoLlamaCpp({"choices": [choice]}, {"request": {"prompt": ["hi"]}})
        assert [item["prompt"] for item in single] == ["hi"]

    @pytest.mark.parametrize("answer", [None, {}, {"choices": []}, {"choices": [None]}])
    def test_no_choices_are_the_backends_fault(self, answer):
        with pytest.raises(BackendError):
            it.textAnsOpenAItoLlamaCpp(answer)


class TestErrors:
    @pytest.mark.parametrize(
        ("name", "status", "kind", "code"),
        [
            ("fail 401", 401, "authentication_error", None),
            ("fail 404", 404, "not_found_error", None),
            ("fail 429", 429, "overloaded_error", None),
            ("fail 500", 500, "api_error", None),
            ("fail 503", 503, "overloaded_error", None),
            ("too long", 400, "invalid_request_error", "context_length_exceeded"),
        ],
    )
    def test_a_backends_error_keeps_its_facts(self, double, name, status, kind, code):
        reply = post(double, "/completion", it.chatReqOpenAItoLlamaCpp(user(name), CFG))
        error = it.parse_error(reply.status_code, reply.json())
        assert (error.status, error.kind, error.code) == (status, kind, code)
        assert error.message == reply.json()["error"]["message"]

    def test_a_client_gets_the_shape_it_knows(self):
        told = it.error_body(BadRequest("too many", code="context_length_exceeded"), "id")
        assert told == {"error": {"code": 400, "message": "too many", "type": "exceed_context_size_error"}}
        assert it.error_body(BackendError("x", status=503), "id")["error"]["type"] == "unavailable_error"
        assert it.parse_error(400, told).code == "context_length_exceeded"

    @given(
        st.integers(400, 599),
        st.recursive(
            st.none() | st.text() | st.integers(),
            lambda s: st.dictionaries(st.sampled_from(["error", "message", "type", "code"]), s),
        ),
    )
    def test_no_body_crashes_it(self, status, body):
        assert it.parse_error(status, body).status == status


EVENTS = st.sampled_from([{"content": "a", "stop": False}, {"content": "b", "stop": False, "index": 1}])
LAST = {
    "content": "",
    "stop": True,
    "stop_type": "eos",
    "stopping_word": "",
    "tokens_predicted": 1,
    "tokens_evaluated": 1,
    "truncated": False,
}
ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3), lambda s: st.lists(s, max_size=2), max_leaves=3
)


def drained(events):
    """What comes, and the ProxyError that ends it, or None."""
    out = []
    try:
        out.extend(events)
    except ProxyError as error:
        return out, error
    return out, None


class TestTheGrammar:
    def test_a_whole_stream_passes(self):
        events = [{"content": "a", "stop": False, "tokens": [1]}, {"content": "", "stop": False, "prompt_progress": {}}, LAST]
        assert list(it.grammar(events)) == events

    @pytest.mark.parametrize(
        ("events", "error"),
        [
            ([], BackendError),
            ([{"content": "a", "stop": False}], BackendError),
            ([{"content": "a", "stop": False, "index": 1}, LAST], BackendError),
            ([LAST, {"content": "a", "stop": False}], MapperError),
            ([LAST, LAST], MapperError),
            ([None], MapperError),
            ([{"content": "a"}], MapperError),
            ([{**LAST, "stop_type": "new"}], MapperError),
            ([{**LAST, "stop_type": None}], MapperError),
            ([{**LAST, "index": -1}], MapperError),
            ([{"error": {"code": 503, "message": "m"}}], BackendError),
        ],
    )
    def test_a_broken_one_ends_with_one_error_event(self, events, error):
        out, raised = drained(it.grammar(events, {"chain": "mine"}))
        assert type(raised) is error
        assert [event for event in out if "error" in event] == out[-1:]

    def test_an_error_of_the_input_is_told_and_raised_again(self):
        def events():
            yield {"content": "a", "stop": False}
            raise BackendError("gone", status=504)

        out = it.grammar(events())
        assert next(out)["content"] == "a"
        assert next(out) == {"error": {"code": 504, "message": "gone", "type": "server_error"}}
        with pytest.raises(BackendError, match="gone"):
            next(out)

    @given(
        st.lists(EVENTS, max_size=4),
        st.integers(0, 5),
        ODD,
        st.sampled_from(["drop", "twice", "swap", "content", "stop", "stop_type", "index"]),
    )
    def test_a_mutated_stream_is_an_error_or_harmless(self, body, at, odd, mutation):
        events = [*copy.deepcopy(body), dict(LAST), {**LAST, "index": 1}]
        at %= len(events)
        if mutation == "drop":
            del events[at]
        elif mutation == "twice":
            events.insert(at, events[at])
        elif mutation == "swap":
            events[at], events[at - 1] = events[at - 1], events[at]
        else:
            events[at][mutation] = odd
        out, raised = drained(it.grammar(events))
        assert "error" in out[-1] if raised else out == events


VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda s: st.lists(s, max_size=3) | st.dictionaries(st.text(max_size=4), s, max_size=3),
    max_leaves=5,
)
RESULT = st.fixed_dictionaries(
    {"content": st.text()},
    optional={
        **dict.fromkeys(
            ("index", "stop_type", "stopping_word", "tokens_evaluated", "tokens_predicted", "timings", "error"), VALUE
        ),
        **dict.fromkeys(("completion_probabilities", "model", "truncated", "what_is_new"), VALUE),
        "stop": st.just(True) | VALUE,
    },
)
HUB_TEXT = st.fixed_dictionaries(
    {
        "choices": st.lists(
            st.fixed_dictionaries({"text": VALUE}, optional={"index": VALUE, "finish_reason": VALUE, "logprobs": VALUE})
        )
    },
    optional={"usage": VALUE, "model": VALUE},
)


class TestLaws:
    @given(st.text(max_size=9), st.sampled_from(["eos", "limit", "word"]), st.integers(0, 9), st.integers(0, 9), st.data())
    def test_a_folded_stream_is_the_answer(self, said, kind, prompt, made, data):
        final = {"index": 0, "stop": True, "stop_type": kind, "stopping_word": "w" if kind == "word" else "", "model": "tiny"}
        final |= {"tokens_evaluated": prompt, "tokens_predicted": made, "timings": {"cache_n": 1}}
        cuts = sorted(data.draw(st.lists(st.integers(0, len(said)), max_size=4)))
        pieces = [said[a:b] for a, b in zip([0, *cuts], [*cuts, len(said)], strict=True)]
        events = [{"index": 0, "content": piece, "stop": False} for piece in pieces] + [{**final, "content": ""}]
        cfg = {**CFG, "request": user("hi", stop=["w"])}
        assert fold(it.chatStreamLlamaCpptoOpenAI(events, cfg)) == it.chatAnsLlamaCpptoOpenAI({**final, "content": said}, cfg)

    @given(st.lists(RESULT, max_size=3))
    def test_nothing_from_a_backend_crashes_or_is_changed(self, results):
        before = copy.deepcopy(results)
        for call in (
            lambda: it.chatAnsLlamaCpptoOpenAI(results),
            lambda: it.textAnsLlamaCpptoOpenAI(results),
            lambda: list(it.chatStreamLlamaCpptoOpenAI(results)),
            lambda: list(it.textStreamLlamaCpptoOpenAI(results)),
            lambda: it.embedAnsLlamaCpptoOpenAI(results),
        ):
            with contextlib.suppress(BackendError):
                call()
        assert results == before

    @given(HUB_TEXT)
    def test_nothing_from_the_hub_crashes_or_is_changed(self, answer):
        before = copy.deepcopy(answer)
        for call in (lambda: it.textAnsOpenAItoLlamaCpp(answer), lambda: list(it.textStreamOpenAItoLlamaCpp([answer, answer]))):
            with contextlib.suppress(BackendError):
                call()
        assert answer == before

    @given(
        st.dictionaries(
            st.sampled_from(
                ["messages", "prompt", "input", "content", *it.OWN, *it.FIELDS, "tools", "n", "response_format", "logprobs"]
            ),
            VALUE,
            max_size=5,
        )
    )
    def test_a_clients_odd_body_is_served_or_refused_and_not_changed(self, body):
        before = copy.deepcopy(body)
        for name in ("chatReqOpenAI", "textReqOpenAI", "embedReqOpenAI", "countReqOpenAI"):
            for cfg in ({}, CFG):
                with contextlib.suppress(BadRequest):
                    mapper(f"{name}toLlamaCpp")(body, cfg)
        for call in (it.textReqLlamaCpptoOpenAI, it.embedReqLlamaCpptoOpenAI):
            with contextlib.suppress(BadRequest):
                call(body)
        assert body == before

    def test_the_request_is_not_changed(self):
        req = user(
            [{"type": "text", "text": "a"}], stop="x", tools=[TOOL], tool_choice="none", response_format={"type": "json_object"}
        )
        before = copy.deepcopy(req)
        for cfg in (CFG, {}, {**CFG, "prompter": llama2_chat}):
            body = it.chatReqOpenAItoLlamaCpp(req, cfg)
            kept = copy.deepcopy(body)
            it.templateAnsLlamaCpp({"prompt": "x"}, {"request": body})
            assert body == kept
        assert req == before


def test_an_answer_of_no_tokens_is_refused():
    with pytest.raises(BadRequest, match="n_predict"):
        mapper("textReqLlamaCpptoOpenAI")({"prompt": "hi", "n_predict": 0}, {})
