"""Holds a request against its AWS Signature Version 4, with nothing but hmac and hashlib.

Written from AWS's "Create a signed AWS API request" (IAM user guide): canonical request, string to sign, signing key,
signature. Its strict reading: the path is what it means, encoded twice, however it was written; `host`, `content-type` and
every x-amz-* header that is there must be signed; the time may be five minutes off.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from urllib.parse import parse_qsl, quote, unquote

AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/([^/]+)/aws4_request, "
    r"SignedHeaders=([a-z0-9;-]+), Signature=([0-9a-f]{64})"
)
SKEW = timedelta(minutes=5)


@dataclass
class Identity:
    """Somebody whom AWS knows by an access key."""

    secret: str
    token: str | None = None
    expired: bool = False


class Unsigned(Exception):
    """Why a request is refused: the exception's name at AWS, and words."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name, self.message = name, message


def verify(
    method: str,
    target: str,
    headers: Mapping[str, str],
    body: bytes,
    identities: Mapping[str, Identity],
    service: str,
    region: str,
    now: datetime | None = None,
) -> str:
    """The access key that signed. headers: by lower-case name; target: path and query as they came. Raises Unsigned."""
    found = AUTHORIZATION.fullmatch(headers.get("authorization", ""))
    if not found:
        raise Unsigned("MissingAuthenticationTokenException", "Missing Authentication Token")
    key, day, scope_region, scope_service, names, signature = found.groups()
    stamp = _in_time(headers.get("x-amz-date", ""), day, now or datetime.now(timezone.utc))
    if (scope_region, scope_service) != (region, service):
        raise Unsigned("InvalidSignatureException", f"Credential should be scoped to {service} in {region}.")
    identity = identities.get(key)
    if identity is None or identity.token != headers.get("x-amz-security-token"):
        raise Unsigned("UnrecognizedClientException", "The security token included in the request is invalid.")
    if identity.expired:
        raise Unsigned("ExpiredTokenException", "The security token included in the request is expired")
    signed = names.split(";")
    needed = {"host", *(name for name in headers if name == "content-type" or name.startswith("x-amz-"))}
    if signed != sorted(signed) or needed - set(signed) or set(signed) - set(headers):
        raise Unsigned("InvalidSignatureException", f"must be signed, and there: {sorted(needed)}, not {signed}")
    canonical = _canonical(method, target, headers, signed, body)
    scope = f"{day}/{region}/{service}/aws4_request"
    to_sign = "\n".join(("AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()))
    if not hmac.compare_digest(signature, _hmac(_signing_key(identity.secret, day, region, service), to_sign).hex()):
        raise Unsigned("InvalidSignatureException", "The request signature we calculated does not match the one you provided.")
    return key


def _in_time(stamp: str, day: str, now: datetime) -> str:
    try:
        sent = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc)
    except ValueError:
        raise Unsigned("IncompleteSignatureException", "Date must be in ISO-8601 'basic format'.") from None
    if stamp[:8] != day or abs(now - sent) > SKEW:
        raise Unsigned("InvalidSignatureException", f"Signature expired: {stamp}")
    return stamp


def _canonical(method: str, target: str, headers: Mapping[str, str], signed: list[str], body: bytes) -> str:
    path, _, query = target.partition("?")
    twice = "/".join(_encoded(_encoded(unquote(segment))) for segment in path.split("/"))
    pairs = sorted((_encoded(name), _encoded(value)) for name, value in parse_qsl(query, keep_blank_values=True))
    lines = [f"{name}:{' '.join(headers[name].split())}" for name in signed]
    parts = (method, twice, "&".join(f"{name}={value}" for name, value in pairs), *lines, "", ";".join(signed))
    return "\n".join((*parts, hashlib.sha256(body).hexdigest()))


def _encoded(text: str) -> str:
    return quote(text, safe="-._~")


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


def _signing_key(secret: str, day: str, region: str, service: str) -> bytes:
    key = _hmac(f"AWS4{secret}".encode(), day)
    for part in (region, service, "aws4_request"):
        key = _hmac(key, part)
    return key
