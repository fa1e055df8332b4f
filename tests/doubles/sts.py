"""A strict stand-in for AWS STS: AssumeRole, for one role and whoever is known, with new credentials each time."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import parse_qs

from tests.doubles.aws import AwsDouble, Handler, Refusal
from tests.doubles.sigv4 import Identity

ROLE = "arn:aws:iam::123456789012:role/inference"
ANSWER = """<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult>
<AssumedRoleUser><AssumedRoleId>AROA:{session}</AssumedRoleId><Arn>{role}/{session}</Arn></AssumedRoleUser>
<Credentials><AccessKeyId>{key}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey><SessionToken>{token}</SessionToken>
<Expiration>{until}</Expiration></Credentials></AssumeRoleResult>
<ResponseMetadata><RequestId>r</RequestId></ResponseMetadata></AssumeRoleResponse>"""
REFUSED = """<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error></ErrorResponse>"""


class StsDouble(AwsDouble):
    """See the module. issued: where new identities go, which another double may know; valid_s: how long they say they are."""

    service = "sts"

    def __init__(self, issued: dict[str, Identity], valid_s: float = 3600) -> None:
        super().__init__()
        self.issued, self.valid_s = issued, valid_s

    def answer(self, handler: Handler, path: str, headers: Any, data: bytes) -> None:
        form = {name: values[0] for name, values in parse_qs(data.decode(), strict_parsing=True).items()}
        if form.pop("Version", None) != "2011-06-15" or form.pop("Action", None) != "AssumeRole" or path != "/":
            raise Refusal(400, "InvalidAction", "no such action")
        if form.pop("RoleArn", None) != ROLE or set(form) != {"RoleSessionName"}:
            data = REFUSED.format(code="AccessDenied", message="is not authorized to perform: sts:AssumeRole").encode()
            handler.reply(403, data, kind="text/xml")
            return
        n = len(self.issued)
        key, identity = f"ASIA{n}EXAMPLE", Identity(f"secret{n}", f"token{n}")
        self.issued[key] = identity
        until = (datetime.now(timezone.utc) + timedelta(seconds=self.valid_s)).strftime("%Y-%m-%dT%H:%M:%SZ")
        facts = {"session": form["RoleSessionName"], "role": ROLE, "key": key, "until": until}
        handler.reply(200, ANSWER.format(**facts, secret=identity.secret, token=identity.token).encode(), kind="text/xml")
