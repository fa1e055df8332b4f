"""The transport of AWS's targets: what is signed and with whose credentials, and what becomes of an event stream's frames."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import boto3
import pytest
import requests
from botocore.config import Config as BotoConfig
from botocore.exceptions import ClientError, EventStreamError

from proxy import wire
from proxy.adapters.aws import Aws, Unframed
from proxy.adapters.exchange import Exchange
from proxy.adapters.outbound import Outbound
from proxy.config import Aws as Settings
from proxy.dialects import load as load_dialect
from proxy.errors import BackendError, BadRequest, ProxyError
from proxy.workbench.show import shown
from tests.backends.literal import Literal
from tests.backends.proxy import KEY as PROXY_KEY
from tests.backends.proxy import Proxy
from tests.backends.tls import Tls
from tests.configs import HERE, Load, fault, load, with_target
from tests.doubles import bedrock as bedrock_double
from tests.doubles.aws import FRAMES, KEY, REGION, SECRET, event
from tests.doubles.aws import fault as exception
from tests.doubles.bedrock import ERROR_FRAME, BedrockDouble
from tests.doubles.sagemaker import SageMakerDouble, part
from tests.doubles.sigv4 import Identity, Unsigned, verify
from tests.doubles.sts import ROLE, StsDouble

__all__ = ["load"]

Json = dict[str, Any]
MODELS = (
    "anthropic.claude-3-5-sonnet-20241022-v2:0",
    "us.anthropic.claude-opus-4-8-v1",
    "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.anthropic.claude-opus-4-8-v1:0",
    "arn:aws:bedrock:us-east-1::foundation-model/amazon.nova-lite-v1:0",
)
HELLO: Json = {"messages": [{"role": "user", "content": [{"text": "say hello ✨"}]}]}


def asked(text: str, **more: Any) -> Json:
    return {"messages": [{"role": "user", "content": [{"text": text}]}], **more}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials of this machine's, none of its cloud's."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_BEARER_TOKEN_BEDROCK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))


def client(service: str, url: str, **more: Any) -> Any:
    given = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET, **more}
    return boto3.client(
        service, region_name=REGION, endpoint_url=url, config=BotoConfig(retries={"total_max_attempts": 1}), **given
    )


# --- the verifier and the doubles are true

VANILLA = {  # `get-vanilla` of AWS's published test suite
    "host": "example.amazonaws.com",
    "x-amz-date": "20150830T123600Z",
    "authorization": "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, "
    "SignedHeaders=host;x-amz-date, Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
}
THEN = datetime(2015, 8, 30, 12, 36, tzinfo=timezone.utc)


def test_the_verifier_takes_the_signature_of_awss_own_test_suite() -> None:
    assert verify("GET", "/", VANILLA, b"", {KEY: Identity(SECRET)}, "service", REGION, THEN) == KEY


@pytest.mark.parametrize(
    "change",
    [
        {"method": "POST"},
        {"target": "/a"},
        {"target": "/?a=b"},
        {"body": b"x"},
        {"service": "bedrock"},
        {"region": "eu-west-1"},
        {"now": datetime(2015, 8, 30, 12, 42, tzinfo=timezone.utc)},
        {"identities": {KEY: Identity("other")}},
        {"identities": {}},
        {"identities": {KEY: Identity(SECRET, "a token")}},
        {"identities": {KEY: Identity(SECRET, expired=True)}},
        {"headers": {**VANILLA, "host": "example.com"}},
        {"headers": {**VANILLA, "x-amz-date": "20150830T123601Z"}},
        {"headers": {**VANILLA, "x-amz-target": "unsigned"}},
        {"headers": {**VANILLA, "content-type": "unsigned"}},
        {"headers": {**VANILLA, "authorization": VANILLA["authorization"][:-1] + "0"}},
        {"headers": {**VANILLA, "authorization": "Bearer x"}},
        {"headers": {name: VANILLA[name] for name in ("host", "authorization")}},
    ],
)
def test_the_verifier_refuses_whatever_was_changed(change: Json) -> None:
    told = {"method": "GET", "target": "/", "headers": VANILLA, "body": b"", "identities": {KEY: Identity(SECRET)}}
    with pytest.raises(Unsigned):
        verify(**{**told, "service": "service", "region": REGION, "now": THEN, **change})


@pytest.mark.parametrize("model", MODELS)
def test_boto3_converses_with_the_double(model: str) -> None:
    with BedrockDouble() as double:
        runtime = client("bedrock-runtime", double.url)
        whole = runtime.converse(modelId=model, **asked("think first"))
        assert [next(iter(block)) for block in whole["output"]["message"]["content"]] == [
            "reasoningContent",
            "reasoningContent",
            "text",
        ]
        assert whole["usage"] == bedrock_double.USAGE
        told = list(runtime.converse_stream(modelId=model, **HELLO)["stream"])
        said = "".join(each["contentBlockDelta"]["delta"]["text"] for each in told if "contentBlockDelta" in each)
        assert said == bedrock_double.HELLO
        assert double.signers == [KEY, KEY]


def test_boto3_hears_the_doubles_errors() -> None:
    with BedrockDouble() as double:
        runtime = client("bedrock-runtime", double.url)
        for status, name in bedrock_double.FAILURES.items():
            with pytest.raises(ClientError) as caught:
                runtime.converse(modelId=MODELS[0], **asked(f"fail {status}"))
            assert caught.value.response["Error"]["Code"] == name
        with pytest.raises(EventStreamError, match="modelStreamErrorException"):
            list(runtime.converse_stream(modelId=MODELS[0], **asked("error stream"))["stream"])
        with pytest.raises(ClientError, match="signature"):
            client("bedrock-runtime", double.url, aws_secret_access_key="wrong").converse(modelId=MODELS[0], **HELLO)


def test_boto3_embeds_with_the_double() -> None:
    with BedrockDouble() as double:
        body = json.dumps({"inputText": "hi"})
        told = client("bedrock-runtime", double.url).invoke_model(
            modelId="amazon.titan-embed-text-v2:0", body=body, contentType="application/json"
        )
        assert json.loads(told["body"].read())["embedding"] == [2.5, 1.0]


def test_boto3_invokes_the_doubles_endpoints() -> None:
    with SageMakerDouble() as double:
        runtime = client("sagemaker-runtime", double.url)
        body = {"inputs": "say hello", "parameters": {"details": True}}
        whole = runtime.invoke_endpoint(EndpointName="tgi", ContentType="application/json", Body=json.dumps(body))
        assert json.loads(whole["Body"].read())[0]["generated_text"] == " Hello there, friend!"
        streamed = runtime.invoke_endpoint_with_response_stream(
            EndpointName="tgi", ContentType="application/json", Body=json.dumps({**body, "stream": True})
        )
        said = b"".join(each["PayloadPart"]["Bytes"] for each in streamed["Body"])
        assert list(wire.read_sse([said]))[-1]["generated_text"] == " Hello there, friend!"
        with pytest.raises(ClientError) as caught:
            runtime.invoke_endpoint(EndpointName="tgi", Body=json.dumps({"inputs": ""}), ContentType="application/json")
        assert caught.value.response["OriginalStatusCode"] == 422


# --- signing


def settings(**environ: str) -> Settings:
    return Settings(REGION, environ={"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, **environ})


def send(adapter: Aws, url: str, path: str, body: Any = HELLO, **headers: str) -> requests.Response:
    prepared = requests.PreparedRequest()
    prepared.method, prepared.url = "POST", url + path
    prepared.body = body if not isinstance(body, dict) else wire.dumps(body)  # type: ignore[assignment]
    host = url.removeprefix("http://")
    prepared.headers = {"host": host, "content-type": "application/json", **headers}  # type: ignore[assignment]
    return adapter.send(prepared, timeout=10)


def adapter(given: Settings | None, dialect: str = "bedrock") -> Aws:
    return Aws(Exchange(), load_dialect(dialect), given)


@pytest.mark.parametrize("model", MODELS)
def test_a_models_name_is_written_and_signed_as_boto3_does_it(model: str) -> None:
    with BedrockDouble() as double:
        client("bedrock-runtime", double.url).converse(modelId=model, **HELLO)
        for path in (f"/model/{model}/converse", double.requests[0][1]):  # plain, and as a client of ours may have written it
            answer = send(adapter(settings()), double.url, path)
            assert answer.status_code == 200, answer.text
        assert [request[1] for request in double.requests] == [double.requests[0][1]] * 3


def test_the_bytes_that_are_sent_are_the_ones_that_are_signed() -> None:
    with BedrockDouble() as double:
        body = wire.dumps(HELLO)
        path = f"/model/{MODELS[0]}/converse"
        pieces = iter([body[:7], body[7:]])
        answer = send(adapter(settings()), double.url, path, pieces, **{"content-length": str(len(body))})
        assert answer.status_code == 200, answer.text
        assert double.requests[-1][3] == HELLO


def test_a_clients_own_signature_is_replaced_and_its_other_headers_stay() -> None:
    given = {"authorization": "AWS4-HMAC-SHA256 mine", "x-amz-date": "20150830T123600Z", "x-amz-security-token": "mine"}
    with BedrockDouble() as double:
        answer = send(adapter(settings()), double.url, f"/model/{MODELS[0]}/converse", **given, **{"x-amzn-x": "kept"})
        assert answer.status_code == 200, answer.text
        assert double.requests[-1][2]["x-amzn-x"] == "kept"
        assert "x-amz-security-token" not in double.requests[-1][2]


def test_a_request_without_a_model_is_the_clients_fault() -> None:
    with pytest.raises(BadRequest) as caught:
        send(adapter(settings()), "http://127.0.0.1:9", "/model/{model}/converse")
    assert caught.value.param == "model"


def test_a_key_of_bedrocks_needs_no_signature() -> None:
    with BedrockDouble() as double:
        double.api_key = "bedrock-api-key"
        answer = send(adapter(None), double.url, f"/model/{MODELS[0]}/converse", authorization="Bearer bedrock-api-key")
        assert (answer.status_code, double.signers) == (200, [])


def test_a_signature_holds_through_an_outbound_proxy() -> None:
    host = "http://bedrock-runtime.us-east-1.amazonaws.com"
    with BedrockDouble() as double:
        signing = Aws(Outbound(double.url), load_dialect("bedrock"), settings())
        answer = send(signing, host, f"/model/{MODELS[2]}/converse")
        assert answer.status_code == 200, answer.text
        streamed = send(signing, host, f"/model/{MODELS[2]}/converse-stream")
        raw: Any = streamed.raw
        assert [next(iter(each)) for each in wire.read_ndjson(raw)][-1] == "metadata"
        assert double.requests[0][2]["host"] == "bedrock-runtime.us-east-1.amazonaws.com"


# --- credentials


def write_credentials(tmp_path: Path, key: str, secret: str) -> None:
    lines = f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"
    (tmp_path / "credentials").write_text(lines)


def test_credentials_of_a_file_that_was_rotated_are_read_anew(tmp_path: Path) -> None:
    write_credentials(tmp_path, KEY, SECRET)
    with BedrockDouble() as double:
        signing = adapter(Settings(REGION))
        assert send(signing, double.url, f"/model/{MODELS[0]}/converse").status_code == 200
        double.identities[KEY].expired = True
        assert send(signing, double.url, f"/model/{MODELS[0]}/converse").status_code == 403
        double.identities["AKIDNEW"] = Identity("new")
        write_credentials(tmp_path, "AKIDNEW", "new")
        assert send(signing, double.url, f"/model/{MODELS[0]}/converse").status_code == 200
        assert double.signers == [KEY, "AKIDNEW"]
        (tmp_path / "credentials").unlink()
        double.identities["AKIDNEW"].expired = True
        assert send(signing, double.url, f"/model/{MODELS[0]}/converse").status_code == 403, "AWS's word, not ours"


def test_a_profile_and_a_session_token_are_those_of_the_environment(tmp_path: Path) -> None:
    write_credentials(tmp_path, "AKIDOTHER", "other")
    with (tmp_path / "credentials").open("a") as file:
        file.write(f"[work]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n")
    with BedrockDouble() as double:
        path = f"/model/{MODELS[0]}/converse"
        assert send(adapter(Settings(REGION, environ={"AWS_PROFILE": "work"})), double.url, path).status_code == 200
        double.identities[KEY].token = "a token"
        assert send(adapter(settings(AWS_SESSION_TOKEN="a token")), double.url, path).status_code == 200
        assert send(adapter(settings(AWS_SESSION_TOKEN="another")), double.url, path).status_code == 403


@pytest.fixture
def clouds(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[StsDouble, BedrockDouble]]:
    """An STS, and a Bedrock that knows nobody but whom that has made."""
    issued: dict[str, Identity] = {}
    with StsDouble(issued) as sts, BedrockDouble(issued) as bedrock:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts.url)
        yield sts, bedrock


def role(arn: str = ROLE) -> Settings:
    return Settings(REGION, arn, settings().environ)


def test_an_assumed_role_signs_and_is_kept_while_it_is_valid(clouds: tuple[StsDouble, BedrockDouble]) -> None:
    sts, bedrock = clouds
    signing = adapter(role())
    for _ in range(3):
        answer = send(signing, bedrock.url, f"/model/{MODELS[0]}/converse")
        assert answer.status_code == 200, answer.text
    assert sts.signers == [KEY]
    assert bedrock.signers == ["ASIA0EXAMPLE"] * 3


def test_a_role_is_assumed_again_before_it_expires(clouds: tuple[StsDouble, BedrockDouble]) -> None:
    sts, bedrock = clouds
    sts.valid_s = 300  # less than what botocore wants to be left
    signing = adapter(role())
    for n in range(3):
        assert send(signing, bedrock.url, f"/model/{MODELS[0]}/converse").status_code == 200
        bedrock.identities[f"ASIA{n}EXAMPLE"].expired = True
    assert bedrock.signers == [f"ASIA{n}EXAMPLE" for n in range(3)]


def test_without_credentials_the_client_hears_that_and_the_log_why(
    clouds: tuple[StsDouble, BedrockDouble], caplog: pytest.LogCaptureFixture
) -> None:
    _, bedrock = clouds
    for given, why in ((Settings(REGION), "AWS_ACCESS_KEY_ID"), (role(ROLE + "-of-others"), "AccessDenied")):
        with pytest.raises(ProxyError) as caught:
            send(adapter(given), bedrock.url, f"/model/{MODELS[0]}/converse")
        assert (caught.value.status, caught.value.code, caught.value.source) == (502, "no_credentials", "proxy")
        assert why in caplog.text
        assert SECRET not in caplog.text + caught.value.message
    assert bedrock.requests == []


# --- frames

STREAM = [event(name, {**payload, "p": "abc"}) for name, payload in bedrock_double.events(bedrock_double.answered(HELLO))]
WHOLE = b"".join(STREAM)


class Inner:
    """A body that comes in these pieces."""

    def __init__(self, *pieces: bytes, **fields: str) -> None:
        self.fields = [("content-type", FRAMES), *((name.replace("_", "-"), value) for name, value in fields.items())]
        self._pieces = iter(pieces)
        self.closed = self.ended = False

    def read1(self) -> bytes:
        return next(self._pieces, b"")

    def close(self) -> None:
        self.closed = True


def events_of(*pieces: bytes) -> list[Any]:
    return list(wire.read_ndjson(Unframed(Inner(*pieces), load_dialect("bedrock"))))


def test_frames_cut_anywhere_give_the_same_events() -> None:
    expected = events_of(WHOLE)
    assert [next(iter(each)) for each in expected][:2] == ["messageStart", "contentBlockDelta"]
    for at in range(1, len(WHOLE)):
        assert events_of(WHOLE[:at], WHOLE[at:]) == expected
    assert events_of(*(WHOLE[i : i + 1] for i in range(len(WHOLE)))) == expected


def test_an_event_is_told_as_soon_as_its_frame_is_whole() -> None:
    body = Unframed(Inner(STREAM[0] + STREAM[1][:-1]), load_dialect("bedrock"))
    assert json.loads(body.read1()) == {"messageStart": {"role": "assistant", "p": "abc"}}
    with pytest.raises(BackendError, match="broke off"):
        body.read1()


def test_a_bit_that_is_wrong_anywhere_in_a_frame_is_noticed() -> None:
    frame = STREAM[1]
    for at in range(len(frame)):
        bent = frame[:at] + bytes([frame[at] ^ 4]) + frame[at + 1 :]
        inner = Inner(bent, STREAM[2])
        with pytest.raises(BackendError):
            list(Unframed(inner, load_dialect("bedrock")))
        assert inner.closed


def test_a_stream_that_ends_within_a_frame_is_cut_off() -> None:
    for at in range(1, len(STREAM[0])):
        with pytest.raises(BackendError, match="broke off"):
            events_of(STREAM[0][:at])


def test_a_frame_of_no_length_ends_in_an_error_and_not_in_a_loop() -> None:
    prelude = struct.pack("!II", 0, 0)
    frame = prelude + struct.pack("!I", zlib.crc32(prelude))
    with pytest.raises(BackendError):
        events_of(frame + struct.pack("!I", zlib.crc32(frame)))


@pytest.mark.parametrize(
    ("frame", "status", "code"),
    [
        (exception("throttlingException", {"message": "slow down"}), 429, "throttlingException"),
        (exception("validationException", {"message": "no"}), 400, "validationException"),
        (exception("modelStreamErrorException", {"message": "no", "originalMessage": "why"}), 502, "modelStreamErrorException"),
        (exception("modelTimeoutException", {"message": "no"}), 504, "modelTimeoutException"),
        (exception("serviceUnavailableException", {"message": "no"}), 503, "serviceUnavailableException"),
        (exception("internalServerException", {"message": "no"}), 500, "internalServerException"),
        (exception("somethingNewException", {}), 502, "somethingNewException"),
        (ERROR_FRAME, 502, "InternalFailure"),
    ],
)
def test_an_exception_in_a_stream_is_raised_behind_the_events_before_it(frame: bytes, status: int, code: str) -> None:
    body = Unframed(Inner(STREAM[0] + frame), load_dialect("bedrock"))
    assert body.read1().startswith(b'{"messageStart"')
    with pytest.raises(BackendError) as caught:
        body.read1()
    assert (caught.value.status, caught.value.code) == (status, code)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, "text/event-stream"),
        ({"x_amzn_sagemaker_content_type": "text/event-stream; charset=utf-8"}, "text/event-stream"),
        ({"x_amzn_sagemaker_content_type": "application/jsonlines"}, "application/x-ndjson"),
    ],
)
def test_a_containers_bytes_come_as_they_are_under_their_own_kind(fields: Json, kind: str) -> None:
    body = Unframed(Inner(part(b"data: 1\n"), part(b"\n"), **fields), load_dialect("sagemaker"))
    assert b"".join(body) == b"data: 1\n\n"
    assert dict(body.fields)["content-type"] == kind


# --- from the configuration to the wire

TARGET = "url: {url}\ndialect: bedrock\naws: {{region: us-east-1}}\n"


def test_boto3_itself_goes_through_a_mapping_without_mappers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", PROXY_KEY)
    lines = "mapping: {{'POST /model/{{model}}/converse': , 'POST /model/{{model}}/converse-stream': }}"
    env = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    with BedrockDouble() as double:
        config = with_target((TARGET + lines).format(url=double.url), "system: {ssl: true}\n")
        with Proxy(tmp_path, config, env=env, files=Tls().files) as proxy:
            authority = str(tmp_path / "certificates/ca.pem")
            runtime = boto3.client("bedrock-runtime", region_name=REGION, endpoint_url=proxy.url, verify=authority)
            whole = runtime.converse(modelId=MODELS[2], **HELLO)
            assert whole["output"]["message"]["content"] == [{"text": bedrock_double.HELLO}]
            told = list(runtime.converse_stream(modelId=MODELS[2], **HELLO)["stream"])
            assert next(iter(told[-1])) == "metadata"
        assert double.signers == [KEY, KEY]


def test_keys_of_aws_may_stand_in_env(tmp_path: Path) -> None:
    with BedrockDouble() as double:
        config = with_target((TARGET + f"model: {MODELS[0]}").format(url=double.url))
        env = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
        files = {".env": "".join(f"{name}={value}\n" for name, value in env.items())}
        with Proxy(tmp_path, config, files=files) as proxy:
            body = {"messages": [{"role": "user", "content": "say hello"}]}
            answer = requests.post(proxy.url + "/v1/chat/completions", json=body, headers=proxy.headers, timeout=20)
            assert answer.json()["choices"][0]["message"]["content"] == bedrock_double.HELLO
            assert answer.headers["x-upstream-request-id"] == "aws-request-1"
            assert SECRET not in proxy.log


@pytest.mark.parametrize(
    ("url", "region"),
    [
        ("https://bedrock-runtime.eu-central-1.amazonaws.com", "eu-central-1"),
        ("https://bedrock-runtime-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("https://vpce-1a2b.bedrock-runtime.us-east-2.vpce.amazonaws.com", "us-east-2"),
        ("https://runtime.sagemaker.ap-southeast-2.amazonaws.com", "ap-southeast-2"),
        ("https://bedrock-runtime.cn-north-1.amazonaws.com.cn", "cn-north-1"),
    ],
)
def test_a_url_of_awss_tells_the_region(load: Load, url: str, region: str) -> None:
    given = load(with_target(f"url: {url}\ndialect: bedrock")).targets["a"].aws
    assert given is not None
    assert given.region == region


def test_a_region_that_is_given_beats_the_urls(load: Load) -> None:
    url = "https://bedrock-runtime.eu-central-1.amazonaws.com"
    lines = f"url: {url}\ndialect: bedrock\naws: {{region: us-east-1, assume_role: {ROLE}}}"
    given = load(with_target(lines), {"MOOLTIPROXY_KEY": "k" * 32, "AWS_PROFILE": "p", "HOME": "/"}).targets["a"].aws
    assert given == Settings("us-east-1", ROLE, {"AWS_PROFILE": "p"})


def test_check_shows_how_a_target_is_signed(load: Load) -> None:
    lines = "url: http://h\ndialect: sagemaker\naws: {{region: us-east-1{}}}"
    assert "\n  signed: for us-east-1\n" in shown(load(with_target(lines.format(""))), {}, {})
    given = load(with_target(lines.format(f", assume_role: {ROLE}")))
    assert f"\n  signed: for us-east-1, as {ROLE}\n" in shown(given, {}, {})


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("url: http://h\ndialect: bedrock", "targets.a: needs `aws: {region: …}`: the url does not tell the region"),
        ("url: http://h\ndialect: tgi\naws: {region: us-east-1}", "targets.a.aws: goes with `dialect: bedrock`"),
        ("url: http://h\ndialect: bedrock\naws: {region: here}", "targets.a.aws.region: must be a region such as us-east-1"),
        ("url: http://h\ndialect: bedrock\naws: {assume_role: me, region: us-east-1}", "aws.assume_role: must be a role's ARN"),
        ("url: http://h\ndialect: bedrock\nauth: none\naws: {region: us-east-1}", "aws: has no effect where nothing is signed"),
        ("url: http://h\ndialect: bedrok", "did you mean 'bedrock'?"),
    ],
)
def test_faults_of_the_configuration_say_what_to_do(load: Load, lines: str, said: str) -> None:
    assert said in fault(load, with_target(lines))


def test_a_target_with_a_key_is_not_signed(load: Load) -> None:
    environ = {"MOOLTIPROXY_KEY": "k" * 32, "AWS_BEARER_TOKEN_BEDROCK": "b" * 20}
    for line in ("envkey: AWS_BEARER_TOKEN_BEDROCK", "auth: none", "auth: passthrough"):
        assert load(with_target(f"url: http://h\ndialect: bedrock\n{line}"), environ).targets["a"].aws is None


def run(program: str, *arguments: str, cwd: Path = HERE.parent) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program, *arguments], cwd=cwd, capture_output=True, text=True, timeout=60)


LOADING = """
import sys
from proxy.config import load
from proxy.errors import ConfigError
from proxy.generation import Generation
try:
    generation = Generation(load(sys.argv[1], {"MOOLTIPROXY_KEY": "k" * 32}, {}, {}), {}, {})
except ConfigError as fault:
    print(fault)
"""


def test_without_botocore_the_start_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(with_target("url: http://h\ndialect: sagemaker\naws: {region: us-east-1}"))
    hidden = "import sys; sys.modules['botocore'] = None\n"
    told = run(hidden + LOADING, str(tmp_path / "c.yaml"))
    assert re.search(r"c\.yaml:5: targets\.a\.dialect: needs the package botocore: pip install botocore", told.stdout), told
    assert run(LOADING, str(tmp_path / "c.yaml")).stdout == ""


def test_a_plain_configuration_imports_nothing_of_awss(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(with_target("url: http://h\ndialect: anthropic"))
    told = run(
        LOADING + "print(sorted(name for name in sys.modules if 'boto' in name or 'aws' in name))", str(tmp_path / "c.yaml")
    )
    assert told.stdout.strip() == "[]", told


def test_an_answer_that_is_no_stream_is_passed_on_as_it_is() -> None:
    answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
    with Literal(answer) as backend:
        assert send(adapter(settings()), backend.url, "/model/m/converse").json() == {}
