"""For each front a request that every backend takes, and every further field that its API documents, with a value that says
something (2026-11; the names are those of the vendors' own SDK types, see test_maximal_requests_know_every_field)."""

from __future__ import annotations

from typing import Any

from tests.compat.features import PNG, SCHEMA

Json = dict[str, Any]

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
URI = f"data:image/png;base64,{PNG}"
FUNCTION = {"name": "get_weather", "description": "Tells it.", "parameters": CITY, "strict": True}
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
PATHS = {
    "openai": "/v1/chat/completions",
    "responses": "/v1/responses",
    "anthropic": "/v1/messages",
    "gemini": "/v1beta/models/any-openai:generateContent",
    "ollama": "/api/chat",
    "tgi": "/generate",
    "llamacpp": "/completion",
}


def _said(content: Any, **more: Any) -> Json:
    return {"messages": [{"role": "user", "content": content, **more}]}


def _item(**item: Any) -> Json:
    return {"input": [item]}


def _flat(**fields: Any) -> dict[str, Json]:
    return {name: {name: value} for name, value in fields.items()}


BASE: dict[str, Json] = {
    "openai": {"model": "any", "messages": [{"role": "user", "content": "hello"}]},
    "responses": {"model": "any", "input": [{"role": "user", "content": "hello"}]},
    "anthropic": {"model": "any", "max_tokens": 2048, "messages": [{"role": "user", "content": "hello"}]},
    "gemini": {"contents": [{"role": "user", "parts": [{"text": "hello"}]}]},
    "ollama": {"model": "any", "stream": False, "messages": [{"role": "user", "content": "hello"}]},
    "tgi": {"inputs": "hello", "parameters": {}},
    "llamacpp": {"prompt": "hello"},
}
OPENAI_TOOL = {"type": "function", "function": FUNCTION}
ANTHROPIC_TOOL = {
    "name": "get_weather",
    "description": "Tells it.",
    "input_schema": CITY,
    "strict": True,
    "eager_input_streaming": True,
    "cache_control": {"type": "ephemeral"},
}
FIELDS: dict[str, dict[str, Json]] = {
    "openai": {
        "tools": {"tools": [OPENAI_TOOL]},
        "messages: a call and its result": {
            "messages": [
                {"role": "assistant", "content": "I look.", "refusal": "no", "name": "bot", "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
            ]
        },
        "messages: system, developer": {"messages": [{"role": "developer", "content": "Be kind.", "name": "boss"}]},
        "messages: name": _said("hello", name="ann"),
        "messages: image": _said([{"type": "image_url", "image_url": {"url": URI, "detail": "low"}}]),
        "messages: audio": _said([{"type": "input_audio", "input_audio": {"data": "aGVsbG8=", "format": "wav"}}]),
        "messages: file": _said(
            [{"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBERi0=", "filename": "a.pdf"}}]
        ),
        "tools: custom": {
            "tools": [{"type": "custom", "custom": {"name": "shell", "description": "Runs.", "format": {"type": "text"}}}]
        },
        "n": {"n": 2},
        **_flat(
            tool_choice={"type": "function", "function": {"name": "get_weather"}},
            parallel_tool_calls=False,
            max_completion_tokens=50,
            stop=["END"],
            temperature=0.5,
            top_p=0.5,
            presence_penalty=0.5,
            frequency_penalty=0.5,
            seed=7,
            logit_bias={"5": 1},
            logprobs=True,
            top_logprobs=2,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "answer", "description": "It.", "schema": SCHEMA, "strict": True},
            },
            reasoning_effort="high",
            verbosity="low",
            user="ann",
            safety_identifier="ann",
            metadata={"a": "b"},
            store=True,
            service_tier="flex",
            prompt_cache_key="k",
            prompt_cache_options={"mode": "explicit"},
            prompt_cache_retention="24h",
            modalities=["text", "audio"],
            audio={"voice": "ash", "format": "wav"},
            prediction={"type": "content", "content": "hello"},
            web_search_options={"search_context_size": "low"},
            moderation={"model": "omni-moderation-latest"},
        ),
    },
    "responses": {
        "tools": {"tools": [{"type": "function", **FUNCTION}]},
        "input: a call and its output": {
            "input": [
                {
                    "type": "function_call",
                    "call_id": "call_1",
                    "id": "fc_1",
                    "name": "get_weather",
                    "arguments": '{"city": "Paris"}',
                },
                {"type": "function_call_output", "call_id": "call_1", "output": "sunny"},
            ]
        },
        "input: reasoning": _item(
            type="reasoning", id="rs_1", summary=[{"type": "summary_text", "text": "So."}], encrypted_content="x"
        ),
        "input: developer": _item(role="developer", content="Be kind."),
        "input: image": _item(role="user", content=[{"type": "input_image", "image_url": URI, "detail": "low"}]),
        "input: file": _item(
            role="user",
            content=[{"type": "input_file", "file_data": "data:application/pdf;base64,JVBERi0=", "filename": "a.pdf"}],
        ),
        "tools: custom": {"tools": [{"type": "custom", "name": "shell", "description": "Runs."}]},
        "tools: web search": {"tools": [{"type": "web_search"}]},
        **_flat(
            instructions="Be brief.",
            tool_choice={"type": "function", "name": "get_weather"},
            parallel_tool_calls=False,
            max_output_tokens=50,
            max_tool_calls=3,
            temperature=0.5,
            top_p=0.5,
            top_logprobs=2,
            include=["message.output_text.logprobs", "reasoning.encrypted_content"],
            text={"format": {"type": "json_schema", "name": "answer", "schema": SCHEMA, "strict": True}, "verbosity": "low"},
            reasoning={"effort": "high", "summary": "auto"},
            truncation="auto",
            user="ann",
            safety_identifier="ann",
            metadata={"a": "b"},
            store=True,
            service_tier="flex",
            prompt_cache_key="k",
            prompt_cache_options={"mode": "explicit"},
            prompt_cache_retention="24h",
            background=True,
            background_options={"completion_window": "2h"},
            access_programs={"cyber": "standard"},
            image={"context_compression": "enabled"},
            conversation="conv_1",
            previous_response_id="resp_1",
            prompt={"id": "pmpt_1"},
            context_management=[{"type": "compaction", "compact_threshold": 1000}],
            moderation={"model": "omni-moderation-latest"},
        ),
    },
    "anthropic": {
        "tools": {"tools": [ANTHROPIC_TOOL]},
        "messages: a call and its result": {
            "messages": [
                {
                    "role": "assistant",
                    "content": [{"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Paris"}}],
                },
                {
                    "role": "user",
                    "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "sunny", "is_error": True}],
                },
            ]
        },
        "messages: thinking": {
            "messages": [
                {
                    "role": "assistant",
                    "content": [{"type": "thinking", "thinking": "So.", "signature": "sig"}, {"type": "text", "text": "a"}],
                },
                {"role": "user", "content": "go on"},
            ]
        },
        "messages: image": _said([{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}]),
        "messages: document": _said(
            [
                {
                    "type": "document",
                    "source": {"type": "text", "media_type": "text/plain", "data": "Facts."},
                    "title": "Facts",
                    "context": "old",
                    "citations": {"enabled": True},
                }
            ]
        ),
        "messages: cache_control": _said([{"type": "text", "text": "hello", "cache_control": {"type": "ephemeral"}}]),
        "tools: web search": {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        **_flat(
            system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
            tool_choice={"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True},
            stop_sequences=["END"],
            temperature=0.5,
            top_p=0.5,
            top_k=5,
            thinking={"type": "enabled", "budget_tokens": 1024},
            output_config={"effort": "high", "format": {"type": "json_schema", "schema": SCHEMA}},
            metadata={"user_id": "ann"},
            service_tier="auto",
            inference_geo="eu",
            container="c_1",
            speed="fast",
            diagnostics={"previous_message_id": "msg_1"},
            cache_control={"type": "ephemeral"},
        ),
    },
    "gemini": {
        "tools": {
            "tools": [{"functionDeclarations": [{"name": "get_weather", "description": "Tells it.", "parameters": CITY}]}]
        },
        "contents: a call and its response": {
            "contents": [
                {
                    "role": "model",
                    "parts": [
                        {
                            "functionCall": {"name": "get_weather", "args": {"city": "Paris"}, "id": "c1"},
                            "thoughtSignature": "c2ln",
                        }
                    ],
                },
                {
                    "role": "user",
                    "parts": [{"functionResponse": {"name": "get_weather", "response": {"result": "sunny"}, "id": "c1"}}],
                },
            ]
        },
        "contents: image": {"contents": [{"role": "user", "parts": [{"inlineData": {"mimeType": "image/png", "data": PNG}}]}]},
        "contents: file": {
            "contents": [
                {"role": "user", "parts": [{"fileData": {"mimeType": "image/png", "fileUri": "https://a.example/a.png"}}]}
            ]
        },
        "tools: google search": {"tools": [{"googleSearch": {}}]},
        "toolConfig": {"toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["get_weather"]}}},
        "systemInstruction": {"systemInstruction": {"parts": [{"text": "Be brief."}]}},
        **{
            f"generationConfig.{name}": {"generationConfig": {name: value}}
            for name, value in {
                "candidateCount": 2,
                "maxOutputTokens": 50,
                "stopSequences": ["END"],
                "temperature": 0.5,
                "topP": 0.5,
                "topK": 5,
                "seed": 7,
                "presencePenalty": 0.5,
                "frequencyPenalty": 0.5,
                "responseLogprobs": True,
                "logprobs": 2,
                "responseMimeType": "application/json",
                "responseJsonSchema": SCHEMA,
                "thinkingConfig": {"includeThoughts": True, "thinkingBudget": 4096},
                "responseModalities": ["TEXT"],
                "mediaResolution": "MEDIA_RESOLUTION_LOW",
                "speechConfig": {"languageCode": "de"},
                "audioTimestamp": True,
                "enableAffectiveDialog": True,
            }.items()
        },
        **_flat(
            safetySettings=[{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}],
            cachedContent="cachedContents/1",
            labels={"a": "b"},
        ),
    },
    "ollama": {
        "tools": {
            "tools": [{"type": "function", "function": {"name": "get_weather", "description": "Tells it.", "parameters": CITY}}]
        },
        "messages: a call and its result": {
            "messages": [
                {
                    "role": "assistant",
                    "content": "",
                    "thinking": "So.",
                    "tool_calls": [{"function": {"name": "get_weather", "arguments": {"city": "Paris"}}}],
                },
                {"role": "tool", "tool_name": "get_weather", "content": "sunny"},
            ]
        },
        "messages: images": _said("look", images=[PNG]),
        **{
            f"options.{name}": {"options": {name: value}}
            for name, value in {
                "num_predict": 50,
                "stop": ["END"],
                "temperature": 0.5,
                "top_p": 0.5,
                "top_k": 5,
                "min_p": 0.1,
                "seed": 7,
                "typical_p": 0.5,
                "tfs_z": 0.5,
                "repeat_penalty": 1.1,
                "repeat_last_n": 5,
                "presence_penalty": 0.5,
                "frequency_penalty": 0.5,
                "mirostat": 1,
                "mirostat_tau": 0.5,
                "mirostat_eta": 0.5,
                "num_ctx": 4096,
                "num_keep": 5,
                "num_batch": 5,
                "num_gpu": 1,
                "main_gpu": 1,
                "num_thread": 2,
                "penalize_newline": True,
                "numa": True,
                "use_mmap": True,
                "use_mlock": True,
                "low_vram": True,
                "vocab_only": True,
                "f16_kv": True,
                "logits_all": True,
                "embedding_only": True,
            }.items()
        },
        **_flat(format=SCHEMA, think="high", keep_alive="5m", logprobs=True, top_logprobs=2),
    },
    "tgi": {
        f"parameters.{name}": {"parameters": {name: value}}
        for name, value in {
            "max_new_tokens": 50,
            "stop": ["END"],
            "temperature": 0.5,
            "top_p": 0.5,
            "top_k": 5,
            "typical_p": 0.5,
            "seed": 7,
            "do_sample": True,
            "repetition_penalty": 1.1,
            "frequency_penalty": 0.5,
            "truncate": 5,
            "watermark": True,
            "details": True,
            "decoder_input_details": True,
            "return_full_text": True,
            "top_n_tokens": 2,
            "grammar": {"type": "json", "value": SCHEMA},
            "adapter_id": "a",
            "best_of": 2,
        }.items()
    },
    "llamacpp": _flat(
        n_predict=50,
        stop=["END"],
        temperature=0.5,
        top_p=0.5,
        top_k=5,
        min_p=0.1,
        typical_p=0.5,
        seed=7,
        repeat_penalty=1.1,
        repeat_last_n=5,
        presence_penalty=0.5,
        frequency_penalty=0.5,
        dynatemp_range=0.5,
        dynatemp_exponent=0.5,
        dry_multiplier=0.5,
        dry_base=1.5,
        dry_allowed_length=3,
        dry_penalty_last_n=5,
        dry_sequence_breakers=["."],
        xtc_probability=0.5,
        xtc_threshold=0.5,
        top_n_sigma=1.5,
        mirostat=1,
        mirostat_tau=4.0,
        mirostat_eta=0.5,
        samplers=["top_k"],
        logit_bias=[[5, 1.0]],
        n_probs=2,
        min_keep=1,
        n_keep=1,
        n_indent=1,
        n_cmpl=2,
        json_schema=SCHEMA,
        ignore_eos=True,
        cache_prompt=True,
        id_slot=1,
        lora=[{"id": 0, "scale": 0.5}],
        t_max_predict_ms=1000,
        n_cache_reuse=5,
        return_tokens=True,
        timings_per_token=True,
        post_sampling_probs=True,
        response_fields=["content"],
    ),
}
