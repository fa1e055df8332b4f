"""Your prompters: functions that write a conversation as the one text that a model which only completes text continues.

An endpoint whose backend takes a bare prompt (TGI, llama.cpp) names its prompter in config.yaml, and often a template:

    targets:
      llama:
        url: http://127.0.0.1:8080
        dialect: tgi
        prompter: fromTemplate
        template: HumanResponse

The built-in prompters are imported here so that you see their names; they live in proxy/prompts.py. A function of your own
in this file needs nothing more than to be here, and with a built-in's name it takes that one's place. The working directory's
prompters.py is used before this one (docs/deployment.md, Upgrading).
"""

from __future__ import annotations

from typing import Any

from proxy.errors import BadRequest
from proxy.prompts import alpaca, chatml, fromTemplate, gemma, llama2_chat, llama3, mistral, vicuna

__all__ = ["alpaca", "chatml", "fromTemplate", "gemma", "interview", "llama2_chat", "llama3", "mistral", "vicuna"]


# A complete example. For the messages
#
#     [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who are you?"}]
#
# it returns
#
#     ("(Be brief.)\nQ: Who are you?\nA:", ["\nQ:"])
#
# A prompter takes
#   messages  what the client sent, in OpenAI's form, whatever API the client speaks: dicts with a `role` (system, developer,
#             user, assistant or tool) and a `content` (a str, or a list of parts {"type": "text", "text": …})
#   cfg       the endpoint's keys as they stand in config.yaml; cfg["template"] is the template that it names, a dict of str
# and returns
#   the prompt                a str, ending where the model is to go on
#   the texts that end it     a list of str (or one str): without one, the model would go on and write the next question too
# Change neither of the two arguments, and read no clock, file or network: the same messages must give the same prompt.
def interview(messages: list[dict[str, Any]], cfg: dict[str, Any]) -> tuple[str, list[str]]:
    lines = []
    for message in messages:
        text = message.get("content") or ""
        if isinstance(text, list):  # how many clients send plain text; but a picture cannot be told, so say no
            if any(part.get("type") != "text" for part in text):
                raise BadRequest("this model reads nothing but text", param="messages")
            text = "".join(part["text"] for part in text)
        if message["role"] in ("system", "developer"):
            lines.append(f"({text})")
        elif message["role"] == "assistant":
            lines.append(f"A: {text}")
        else:  # the user, or a tool that answers
            lines.append(f"Q: {text}")
    # When the conversation ends with the assistant's own words, the model is to continue them: do not ask again.
    if messages[-1]["role"] != "assistant":
        lines.append("A:")
    return "\n".join(lines), ["\nQ:"]
