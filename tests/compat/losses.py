"""What each front loses before each backend: a request that uses every documented field of the front's API, field by field.

Each field is added to a request that every backend takes. Where a backend's mapper refuses the field with a 400, it is refused;
what stays is mapped together, and the loss ledger tells which paths change nothing that is sent.
"""

from __future__ import annotations

import re
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from proxy.config import load
from proxy.dialects import path_params
from proxy.errors import BadRequest
from proxy.generation import Generation
from proxy.losses import lost_paths
from proxy.translate import Endpoint, Translation
from tests.compat import maximal
from tests.compat.features import Json
from tests.compat.matrix import BACKENDS
from tests.compat.world import config

MODELS = {backend.name: backend.model for backend in BACKENDS}


@lru_cache(maxsize=1)
def _generation() -> Generation:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.yaml")
        path.write_text(config({backend.name: "http://127.0.0.1:9" for backend in BACKENDS}))
        return Generation(load(str(path), {"MOOLTIPROXY_KEY": "unused"}, {}, {}), {}, {})


def _endpoint(front: str, backend: str) -> tuple[Endpoint, str]:
    place, path = _generation().places[backend.replace(" ", "-")], maximal.PATHS[front]
    found = _generation().find(place, front, "POST", path)
    assert found is not None
    return found[0], path


def _mapped(front: str, backend: str, body: Json) -> tuple[Translation, Any]:
    endpoint, path = _endpoint(front, backend)
    translation = Translation(endpoint, "x" * 28, front, "POST", path)
    params = path_params(front, "POST", path)
    return translation, translation.request(body, False, params, "", MODELS[backend])


@lru_cache(maxsize=None)
def told(front: str, backend: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(lost paths, refused fields); both are empty where the bytes are relayed."""
    if not _endpoint(front, backend)[0].inward:
        return (), ()
    body: Json = maximal.BASE[front]
    refused = []
    for name, patch in maximal.FIELDS[front].items():
        fuller = merged(body, patch)
        try:
            _mapped(front, backend, fuller)
        except BadRequest:
            refused.append(name)
        else:
            body = fuller
    translation, _ = _mapped(front, backend, body)
    found = [re.sub(r"\[\d+\]", "[*]", path) for path in (*lost_paths(body, translation.pure), *translation.told)]
    return tuple(sorted(set(found))), tuple(refused)


def lost(front: str, backend: str) -> tuple[str, ...]:
    """The lost paths alone."""
    return told(front, backend)[0]


def merged(body: Any, patch: Any) -> Any:
    """Objects are merged, arrays appended to, anything else is set."""
    if isinstance(body, dict) and isinstance(patch, dict):
        return {**body, **{name: merged(body.get(name), value) for name, value in patch.items()}}
    if isinstance(body, list) and isinstance(patch, list):
        return [*body, *patch]
    return patch
