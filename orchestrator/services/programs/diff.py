"""What two versions of a program differ in: instructions, demos, fields of its predictors; target, config, source."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from orchestrator.services.store import VersionRow

_PLAIN: Final = ("target", "pool", "config", "signature", "inputs", "outputs")


def diff(a: VersionRow, b: VersionRow) -> dict[str, Any]:
    """Return {name, a, b, same, …}: under each of the other keys what differs, and nothing where nothing does.

    `target`, `pool`, `config`, `signature`, `inputs`, `outputs`: [of a, of b]. `source`: true where the code differs.
    `predictors`: {added, removed}; `instructions`, `fields`: [of a, of b] by predictor; `demos`: {added, removed} by
    predictor. A program that is one predictor has it under "".
    """
    found: dict[str, Any] = {
        key: [_plain(getattr(a, key)), _plain(getattr(b, key))]
        for key in _PLAIN
        if _plain(getattr(a, key)) != _plain(getattr(b, key))
    }
    if a.source_sha256 != b.source_sha256:
        found["source"] = True
    found |= _predictors(_of(a), _of(b))
    return {"name": a.name, "a": a.version, "b": b.version, "same": not found, **found}


def _predictors(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if a.keys() != b.keys():
        found["predictors"] = {"added": sorted(b.keys() - a.keys()), "removed": sorted(a.keys() - b.keys())}
    for key in ("instructions", "fields"):
        differing = {name: [a[name][key], b[name][key]] for name in a if name in b and a[name][key] != b[name][key]}
        if differing:
            found[key] = differing
    demos = {name: _changed(a[name]["demos"], b[name]["demos"]) for name in a if name in b}
    if demos := {name: one for name, one in demos.items() if one["added"] or one["removed"]}:
        found["demos"] = demos
    return found


def _changed(a: list[Any], b: list[Any]) -> dict[str, list[Any]]:
    """Return which demos came and which went; their order says nothing."""
    texts_a, texts_b = ({json.dumps(demo, sort_keys=True): demo for demo in demos} for demos in (a, b))
    return {
        "added": [demo for text, demo in texts_b.items() if text not in texts_a],
        "removed": [demo for text, demo in texts_a.items() if text not in texts_b],
    }


def _of(row: VersionRow) -> dict[str, dict[str, Any]]:
    """Return the predictors of a version: as they were when it was loaded, else as its state has them."""
    told = row.predictors or row.state or {}
    if isinstance(told.get("signature"), dict):
        told = {"": told}
    return {name: _predictor(one) for name, one in told.items() if isinstance(one, dict)}


def _predictor(one: Mapping[str, Any]) -> dict[str, Any]:
    signature = one.get("signature")
    signature = signature if isinstance(signature, dict) else {}
    return {
        "instructions": signature.get("instructions"),
        "fields": signature.get("fields") or [],
        "demos": one.get("demos") or [],
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
