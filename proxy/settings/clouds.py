"""The configuration of targets in clouds, which are spoken to in ways of their own: `azure` and `aws`."""

from __future__ import annotations

import importlib
import re

from proxy.config import Aws
from proxy.settings.findings import Findings, Given, Rule
from proxy.settings.source import Path
from proxy.settings.tries import OF_A_KEY

AWS_HOST = re.compile(r"[/.](?:bedrock-runtime|sagemaker)[a-z-]*\.([a-z]{2}(?:-[a-z]+)+-\d)\.")  # → the region
RULES: tuple[Rule, ...] = (
    (
        "azure",
        ("azure", "dialect"),
        lambda t: "azure" in t and t.get("dialect") != "openai",
        "goes with `dialect: openai` only",
    ),
    (
        "aws",
        ("aws", "dialect"),
        lambda t: "aws" in t and t.get("dialect") not in ("bedrock", "sagemaker"),
        "goes with `dialect: bedrock` and `dialect: sagemaker` only",
    ),
    (
        "aws",
        ("aws", "key", "envkey", "auth"),
        lambda t: "aws" in t and ("key" in t or "envkey" in t or t.get("auth") in ("none", "passthrough")),
        "has no effect where nothing is signed: remove it, or `key`, `envkey` and `auth`",
    ),
    (
        "dialect",
        ("dialect", "key", "envkey", "auth"),
        lambda t: t.get("dialect") == "sagemaker" and ("key" in t or "envkey" in t or t.get("auth") == "passthrough"),
        "SageMaker takes signed requests alone: remove the key and `auth`",
    ),
)


def aws_of(found: Findings, path: Path, given: Given, auth: str) -> Aws | None:
    """How requests to AWS are signed; None where they carry a key, or the client's."""
    try:
        importlib.import_module("botocore")
    except ImportError:
        found.fault((*path, "dialect"), "needs the package botocore: pip install botocore")
    if any(name in given for name in OF_A_KEY) or auth in ("none", "passthrough"):
        return None
    told, host = given.get("aws", {}), AWS_HOST.search(given.get("url", ""))
    region = told.get("region") or (host[1] if host else "")
    if not region and not any(found.is_faulty((*path, name)) for name in ("url", "aws")):
        found.fault(path, "needs `aws: {region: …}`: the url does not tell the region")
    environ = {name: value for name, value in found.environ.items() if name.startswith("AWS_")}
    return Aws(region, told.get("assume_role"), environ)
