"""llama.cpp's mappers against a real llama.cpp server: what it is sent it takes, what it answers is understood."""

from __future__ import annotations

import pytest
import requests

from proxy.dialects import llamacpp as it
from proxy.dialects import mapper
from proxy.dialects.openai import chatStreamOpenAItoOpenAI, fold, vectors_of
from proxy.dialects.openai import grammar as openai_grammar
from proxy.prompts import chatml, prompt_of
from proxy.wire import reader
from tests.backends.llama_server import CONTEXT, llama_server  # noqa: F401 (a fixture)

CFG = {"id": "x" * 28, "now": 1700000000}
PROMPTED = {**CFG, "prompter": chatml}
PNG = "data:image/png;base64,iVBORw0KGgo="


@pytest.fixture
def url(llama_server):  # noqa: F811
    return llama_server.url


def post(url, body):
    return requests.post(url, json=body, timeout=20)


def ask(url, req, cfg=CFG, kind="chat"):
    """One whole call as the relay makes it → the server's reply, and cfg for its mapper."""
    cfg = {**cfg, "request": req, "kind": kind}
    body = mapper(f"{kind}ReqOpenAItoLlamaCpp")(req, cfg)
    if "messages" in body:
        made = post(url + "/apply-template", it.templateReqLlamaCpp(body, cfg))
        assert made.status_code == 200, made.text
        body = it.templateAnsLlamaCpp(made.json(), {**cfg, "request": body})
    return post(url + it.DIALECT.backend[kind].path, body), cfg


def answer(url, req, cfg=CFG, kind="chat"):
    reply, cfg = ask(url, req, cfg, kind)
    assert reply.status_code == 200, reply.text
    return mapper(f"{kind}AnsLlamaCpptoOpenAI")(reply.json(), cfg)


def stream(url, req, cfg=CFG, kind="chat"):
    reply, cfg = ask(url, {**req, "stream": True}, cfg, kind)
    events = reader(reply.headers["Content-Type"])([reply.content])
    chunks = list(mapper(f"{kind}StreamLlamaCpptoOpenAI")(events, cfg))
    assert list(openai_grammar(chunks, {"kind": kind})) == chunks
    return chunks


def user(text, **more):
    # with a cache, how much of a prompt came from it depends on what was asked before
    return {"model": "m", "messages": [{"role": "user", "content": text}], "temperature": 0, "cache_prompt": False, **more}


def said(chunks):
    return "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])


class TestChat:
    @pytest.mark.parametrize("cfg", [CFG, PROMPTED], ids=["the server's template", "our chatml"])
    def test_an_answer_and_its_usage(self, url, cfg):
        got = answer(url, user("hé"), cfg)
        assert got["model"] == "m"
        assert got["choices"] == [
            {"index": 0, "message": {"role": "assistant", "content": "OK, fine!"}, "finish_reason": "stop"}
        ]
        assert got["usage"]["completion_tokens"] == 10  # the end is a token too
        assert got["usage"]["prompt_tokens"] == answer(url, user("hé"), cfg, "count")["input_tokens"] == 22

    def test_our_chatml_is_the_models_own_template(self, url):
        messages = [("system", "Be kind."), ("user", "hi"), ("assistant", "ho"), ("user", "hi")]
        for turns in (messages, messages[:-1], messages[1:2]):
            listed = [{"role": role, "content": text} for role, text in turns]
            theirs = post(url + "/apply-template", {"messages": listed}).json()["prompt"]
            assert prompt_of(listed, PROMPTED)[0] == theirs

    @pytest.mark.parametrize("cfg", [CFG, PROMPTED], ids=["the server's template", "our chatml"])
    @pytest.mark.parametrize(
        "more",
        [
            {},
            {"max_tokens": 3},
            {"stop": ["fi"]},
            {"stop": "no such"},
            {"n": 2},
            {"logprobs": True, "top_logprobs": 2},
            {"logprobs": True, "stop": "fi"},
            {"seed": 7, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "typical_p": 0.5, "logit_bias": {"5": -1}},
        ],
        ids=str,
    )
    def test_a_folded_stream_is_the_answer(self, url, cfg, more):
        assert fold(stream(url, user("hi", **more), cfg)) == answer(url, user("hi", **more), cfg)

    def test_it_stops_where_it_is_told_to(self, url):
        choice = answer(url, user("hi", stop=["x", "fi"]))["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"], choice["stop_sequence"]) == ("OK, ", "stop", "fi")
        choice = answer(url, user("hi", max_completion_tokens=2))["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("OK", "length")

    def test_a_final_assistant_turn_is_continued(self, url):
        req = {**user("hi"), "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Well\n"}]}
        for cfg in (CFG, PROMPTED):
            assert answer(url, req, cfg)["choices"][0]["message"]["content"] == "OK, fine!"

    def test_logprobs_are_those_of_the_tokens(self, url):
        content = answer(url, user("hi", logprobs=True, top_logprobs=2))["choices"][0]["logprobs"]["content"]
        assert [item["token"] for item in content] == list("OK, fine!")
        assert content[0]["bytes"] == [79]
        assert content[0]["logprob"] == pytest.approx(0, abs=1e-6)
        assert len(content[0]["top_logprobs"]) == 2

    def test_a_schema_binds_it(self, url):
        schema = {"name": "x", "schema": {"enum": ["yes", "no"]}}
        got = answer(url, user("hi", response_format={"type": "json_schema", "json_schema": schema}))
        assert got["choices"][0]["message"]["content"] in ('"yes"', '"no"')
        got = answer(url, user("hi", grammar='root ::= "abc"'))
        assert got["choices"][0]["message"]["content"] == "abc"

    def test_the_cached_part_of_a_prompt_is_told(self, url):
        answer(url, user("hi", id_slot=0))
        spent = answer(url, user("hi", cache_prompt=True, id_slot=0))["usage"]
        assert 0 < spent["prompt_tokens_details"]["cached_tokens"] < spent["prompt_tokens"]

    def test_its_own_chat_stream_is_one_that_the_hub_reads(self, url):
        req = {"messages": [{"role": "user", "content": "hi"}], "stream": True, "stream_options": {"include_usage": True}}
        reply = post(url + "/v1/chat/completions", req)
        events = reader(reply.headers["Content-Type"])([reply.content])
        got = fold(openai_grammar(chatStreamOpenAItoOpenAI(events)))
        assert (got["choices"][0]["message"]["content"], got["usage"]["completion_tokens"]) == ("OK, fine!", 10)


class TestText:
    def test_halves_of_code_points_are_never_seen_in_a_stream(self, url):
        chunks = stream(url, {"model": "m", "prompt": "~", "max_tokens": 6}, kind="text")
        assert [choice["text"] for chunk in chunks for choice in chunk["choices"]] == ["é", "é", "é", ""]
        assert chunks[-1]["usage"]["completion_tokens"] == 6

    def test_a_token_of_four_bytes(self, url):
        for req in ({"prompt": "$"}, {"prompt": [36]}, {"prompt": ["$"]}):
            assert answer(url, req, kind="text")["choices"][0]["text"] == "😀"
            assert said(stream(url, req, kind="text")) == "😀"

    def test_several_prompts(self, url):
        req = {"prompt": ["a\n", "b$"], "n": 2, "cache_prompt": False}
        whole, chunks = answer(url, req, kind="text"), stream(url, req, kind="text")
        assert [choice["text"] for choice in whole["choices"]] == ["OK, fine!"] * 2 + ["😀"] * 2
        assert whole["usage"]["prompt_tokens"] == 4
        assert chunks[-1]["usage"] == whole["usage"]

    def test_echo_and_logprobs(self, url):
        assert answer(url, {"prompt": "a\n", "echo": True}, kind="text")["choices"][0]["text"] == "a\nOK, fine!"
        logprobs = answer(url, {"prompt": "a\n", "logprobs": 1}, kind="text")["choices"][0]["logprobs"]
        assert "".join(logprobs["tokens"]) == "OK, fine!"

    def test_the_end_of_the_context_is_length(self, url):
        got = answer(url, {"prompt": "~"}, kind="text")
        assert got["choices"][0]["finish_reason"] == "length"
        assert got["usage"]["total_tokens"] == CONTEXT

    def test_any_bytes_are_text(self, url):
        got = answer(url, {"prompt": "x", "max_tokens": 40, "temperature": 2, "seed": 1}, kind="text")
        assert isinstance(got["choices"][0]["text"], str)


class TestTheRest:
    def test_embeddings(self, url):
        req = {"model": "m", "input": ["hi", "a longer text"]}
        got = answer(url, req, kind="embed")
        theirs = vectors_of(post(url + "/v1/embeddings", req).json())
        assert vectors_of(got) == theirs
        assert vectors_of(answer(url, {**req, "encoding_format": "base64"}, kind="embed")) == [
            pytest.approx(vector, abs=1e-6) for vector in theirs
        ]
        assert it.embedAnsOpenAItoLlamaCpp(got) == post(url + "/embedding", {"content": req["input"]}).json()
        assert len(answer(url, {"input": [104, 105]}, kind="embed")["data"]) == 1

    def test_models(self, url):
        got = it.modelsAnsLlamaCpptoOpenAI(requests.get(url + "/v1/models", timeout=20).json())
        assert [(model["id"], model["owned_by"]) for model in got["data"]] == [("tiny", "llamacpp")]

    @pytest.mark.parametrize(
        "more", [{}, {"n_predict": 3}, {"stop": ["fi"]}, {"n_probs": 2}, {"prompt": ["a\n", "b\n"]}], ids=str
    )
    def test_a_llama_client_gets_through_the_hub_what_it_gets_here(self, url, more):
        body = {"prompt": "a\n", "temperature": 0, "cache_prompt": False, **more}
        native = post(url + "/completion", body).json()
        req = it.textReqLlamaCpptoOpenAI(body)
        hub = answer(url, {**req, "cache_prompt": False}, kind="text")
        there = it.textAnsOpenAItoLlamaCpp(hub, {"request": body})
        for ours, theirs in zip(
            *(answers if isinstance(answers, list) else [answers] for answers in (there, native)), strict=True
        ):
            kept = {"index", "content", "stop", "prompt", "truncated", "has_new_line", "tokens_evaluated", "tokens_predicted"}
            kept = kept if len(native) != 2 else kept - {"tokens_evaluated", "tokens_predicted"}  # known for both together
            assert {name: ours[name] for name in kept} == {name: theirs[name] for name in kept}
            # the hub's lists have no place for the token that ends the answer
            assert len(ours.get("completion_probabilities", [])) == max(len(theirs.get("completion_probabilities", [])) - 1, 0)

    def test_its_own_streams_are_legal(self, url):
        more = {"stream": True, "return_progress": True, "timings_per_token": True, "n_probs": 1}
        reply = post(url + "/completion", {"prompt": "a\n", **more})
        events = list(reader(reply.headers["Content-Type"])([reply.content]))
        assert list(it.grammar(events)) == events
        assert said(it.textStreamLlamaCpptoOpenAI(events)) == "OK, fine!"

    def test_tokenize_and_detokenize(self, url):
        tokens = post(url + "/tokenize", {"content": "he é"}).json()["tokens"]
        assert tokens == [256, 32, 195, 169]
        assert post(url + "/detokenize", {"tokens": tokens}).json() == {"content": "he é"}


class TestItsResponses:
    def test_an_answer_that_was_cut_is_completed_and_nothing_tells_it_but_the_count(self, url):
        cut = post(url + "/v1/responses", {"input": "hé", "max_output_tokens": 3, "temperature": 0}).json()
        assert (cut["status"], cut["usage"]["output_tokens"]) == ("completed", 3)
        assert "incomplete_details" not in cut


class TestErrors:
    @pytest.mark.parametrize(
        ("req", "status", "kind", "code"),
        [
            (user("x" * CONTEXT), 400, "invalid_request_error", "context_length_exceeded"),
            (user("x" * CONTEXT, stream=True), 400, "invalid_request_error", "context_length_exceeded"),
            (user("hi", grammar="root ::= nope"), 400, "invalid_request_error", None),
            (user("hi", n=9), 400, "invalid_request_error", None),
        ],
    )
    def test_they_keep_their_facts(self, url, req, status, kind, code):
        reply, _ = ask(url, req)
        error = it.parse_error(reply.status_code, reply.json())
        assert (error.status, error.kind, error.code) == (status, kind, code)
        assert error.message == reply.json()["error"]["message"]

    def test_a_model_without_eyes_says_so(self, url):
        body = it.chatReqOpenAItoLlamaCpp(user([{"type": "image_url", "image_url": {"url": PNG}}]))
        reply = post(url + "/apply-template", it.templateReqLlamaCpp(body))
        assert "image input is not supported" in it.parse_error(reply.status_code, reply.json()).message

    def test_an_unknown_path(self, url):
        reply = post(url + "/nowhere", {})
        error = it.parse_error(reply.status_code, reply.json())
        assert (error.status, error.kind) == (404, "not_found_error")
