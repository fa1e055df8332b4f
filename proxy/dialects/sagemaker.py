"""Amazon SageMaker's endpoints, as a backend: AWS in front of a container, TGI unless a `mapping` says something else.

The request's model is the endpoint's name. The body is that of TGI's own `/`, one path for streams and whole answers, of which
the container knows by `stream`; all mappers are TGI's. A container of another kind has mappers of one's own in `mapping`.
The transport (`adapters/aws.py`) signs and takes the framing off: what is left of a stream is the container's own.
Source: botocore 1.44, sagemaker-runtime 2017-05-13.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from proxy import wire
from proxy.dialects import Dialect, Upstream, tgi
from proxy.dialects._answer import object_of
from proxy.dialects.bedrock import parse_error as aws_error
from proxy.dialects.openai import error_body, grammar, text
from proxy.errors import BackendError

chatAnsSageMakertoOpenAI = tgi.chatAnsTGItoOpenAI
chatStreamSageMakertoOpenAI = tgi.chatStreamTGItoOpenAI
textAnsSageMakertoOpenAI = tgi.textAnsTGItoOpenAI
textStreamSageMakertoOpenAI = tgi.textStreamTGItoOpenAI


def chatReqOpenAItoSageMaker(ip: Any, cfg: Mapping[str, Any] = {}) -> Any:
    """Chat request → {"inputs", "parameters", "stream"?}. In, raises: as chatReqOpenAItoTGI."""
    return tgi.chatReqOpenAItoTGI(ip, {**cfg, "path": "/"})


def textReqOpenAItoSageMaker(ip: Any, cfg: Mapping[str, Any] = {}) -> Any:
    """Completions request → {"inputs", "parameters", "stream"?}. In, raises: as textReqOpenAItoTGI."""
    return tgi.textReqOpenAItoTGI(ip, {**cfg, "path": "/"})


def parse_error(status: int, body: Any) -> BackendError:
    """The container's own error, where SageMaker hands one on as ModelError, else SageMaker's; never raises."""
    told = object_of(body)
    original, said = told.get("OriginalStatusCode"), text(told.get("OriginalMessage"))
    if isinstance(original, int) and 400 <= original < 600 and said:
        return tgi.parse_error(original, _decoded(said))
    error = aws_error(status, body)
    if told.get("ErrorCode") == "ModelInvocationTimeExceeded":
        return BackendError(error.message, status=504, code="ModelInvocationTimeExceeded")
    return error


def _decoded(said: str) -> Any:
    try:
        return wire.loads(said.encode("utf-8", "replace"))
    except ValueError:
        return said


DIALECT = Dialect(
    name="sagemaker",
    tag="SageMaker",
    routes=(),
    backend={
        kind: Upstream("/endpoints/{model}/invocations", "/endpoints/{model}/invocations-response-stream")
        for kind in ("chat", "text")
    },
    version="",
    error_body=error_body,  # the hub's, as its grammar: nobody reads them
    parse_error=parse_error,
    grammar=grammar,
    aws="sagemaker",
)
