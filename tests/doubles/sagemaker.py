"""A strict stand-in for SageMaker's runtime in front of text-generation-inference: InvokeEndpoint and its response stream.

It checks the signature and the endpoint's name; the body is the container's, which `tests/doubles/tgi.py` plays, with its
scenarios. Endpoints: `tgi`; `lines`, a container of another kind, answers {"said": …}, streamed as lines of JSON; there is no
other. Scenarios of its own: fail stream, time out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from tests.doubles import tgi
from tests.doubles.aws import AwsDouble, Handler, Json, Refusal, check, fault, frame, shape_of

PATH = re.compile(r"/endpoints/([^/]+)/(invocations|invocations-response-stream)")
INPUT = shape_of("sagemaker-runtime", "InvokeEndpoint")
ENDPOINTS = ("tgi", "lines")


def part(data: bytes) -> bytes:
    """A piece of what the container says."""
    return frame(data, event_type="PayloadPart", content_type="application/octet-stream", message_type="event")


class SageMakerDouble(AwsDouble):
    """See the module and `AwsDouble`."""

    service = "sagemaker"

    def answer(self, handler: Handler, path: str, headers: Json, data: bytes) -> None:
        found = PATH.fullmatch(path)
        if not found:
            raise Refusal(404, "UnknownOperationException", f"no operation at {path}")
        endpoint, streams, body = found[1], found[2] != "invocations", self.decoded(data)
        check(endpoint, INPUT.members["EndpointName"], "EndpointName")
        if endpoint not in ENDPOINTS:
            raise Refusal(400, "ValidationError", f"Endpoint {endpoint} of account 123456789012 not found.")
        if endpoint == "lines":
            self._lines(handler, body, streams)
            return
        try:
            given = tgi.check(body, streams, root=True)
            if bool(body.get("stream")) != streams:
                raise Refusal(400, "ValidationError", "the container must be asked for a stream where one is wanted")
            if not streams:
                handler.reply(200, [tgi.whole(body, given)])
                return
            handler.stream(self._frames(body, given), x_amzn_sagemaker_content_type="text/event-stream")
        except tgi.Refusal as refusal:
            said = json.dumps(refusal.body)
            more = {"OriginalStatusCode": refusal.status, "OriginalMessage": said, "LogStreamArn": "arn"}
            message = f"Received error ({refusal.status}) from primary with message {said}"
            raise Refusal(424, "ModelError", message, Message=message, **more) from None

    def _frames(self, body: Json, given: Json) -> Iterator[bytes | None]:
        if "fail stream" in body["inputs"]:
            yield fault("InternalStreamFailure", {"Message": "the stream processing failed"})
            return
        for one in tgi.frames(body, given):
            if one is None:
                yield None
                return
            data = b"data:%s\n\n" % json.dumps(one).encode()
            for at in range(0, len(data), 31):  # parts end anywhere
                yield part(data[at : at + 31])
            if "time out" in body["inputs"]:
                yield fault("ModelStreamError", {"Message": "too slow", "ErrorCode": "ModelInvocationTimeExceeded"})
                return

    def _lines(self, handler: Handler, body: Any, streams: bool) -> None:
        if not isinstance(body, dict) or set(body) != {"question"}:
            raise Refusal(424, "ModelError", "the container wants a question", OriginalStatusCode=400, OriginalMessage="bad")
        words = ("one ", "two ", "three")
        if not streams:
            handler.reply(200, {"said": "".join(words)})
            return
        lines = b"".join(b'{"said": "%s"}\n' % word.encode() for word in words)
        handler.stream(
            (part(lines[at : at + 9]) for at in range(0, len(lines), 9)), x_amzn_sagemaker_content_type="application/jsonlines"
        )
