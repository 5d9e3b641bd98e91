"""The programs of this coordinator: deployed by name, loaded in a worker before the name exists."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from bridge.protocol.errors import INVALID_REQUEST, BridgeError, not_found, shown
from bridge.protocol.messages import Program
from bridge.protocol.names import is_taken
from bridge.protocol.values import encode_value
from pools.core.events import ProgramDeployed

LOAD_OPERATION: Final = "programs.load"
LOAD_DEADLINE_S: Final = 120.0
_KEYS: Final = ("name", "target", "pool", "state", "config")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,99}")


class Deployed(msgspec.Struct, frozen=True):
    """One program, as listed by `dspool.programs`.

    signature: the text of what it takes and gives, None if its `forward` is not described by one.
    """

    name: str
    version: int
    sha256: str
    pool: str
    target: Any
    inputs: list[str]
    outputs: list[str]
    config: dict[str, Any] | None = None
    signature: str | None = None


class Programs:
    """The table. A deployment with the same content as the one before keeps its version."""

    def __init__(self) -> None:
        self._programs: dict[str, Deployed] = {}
        self._versions: dict[str, int] = {}

    def check(self, args: Mapping[str, Any], pools: list[str]) -> dict[str, Any]:
        """Return the spec that a worker is asked to load. Raises BridgeError naming what is wrong."""
        for key in args:
            if key not in _KEYS:
                raise _invalid(shown(key), f"deploy takes no such key (it takes {', '.join(_KEYS)})")
        name = args.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise _invalid("name", f"{shown(name)} is no program name (letters, digits, _ . -; up to 100)")
        if is_taken(name):
            raise _invalid("name", f"{name!r} is a built-in operation's name")
        pool = args.get("pool") or "general"
        if not isinstance(pool, str):
            raise _invalid("pool", f"{shown(pool)} is no pool's name")
        if pool not in pools:
            raise not_found("pool", pool, pools)
        target = args.get("target")
        if not (isinstance(target, str) and ":" in target) and not isinstance(target, dict):
            raise _invalid(
                "target", f'{shown(target)} is no target: "package.module:Class", "file.py:Class" or a mapping'
                ' {"module": "dspy.Predict", "signature": "…"}',
            )  # fmt: skip
        state = args.get("state")
        if state is not None and not isinstance(state, dict):
            raise _invalid("state", "a program's state is a mapping, as dspy's dump_state returns it")
        config = args.get("config")
        if config is not None and not (isinstance(config, dict) and all(isinstance(key, str) for key in config)):
            raise _invalid("config", f"a program's config is a mapping with text keys, got {shown(config)}")
        return {"name": name, "target": target, "state": state, "config": config, "pool": pool}

    def deployed(self, spec: Mapping[str, Any], loaded: Mapping[str, Any]) -> tuple[Deployed, ProgramDeployed]:
        """Enter a program that a worker has loaded; return its row and the event for the fleet."""
        name, sha256 = spec["name"], str(loaded["sha256"])
        before = self._programs.get(name)
        same = before is not None and before.sha256 == sha256 and before.pool == spec["pool"]
        version = self._versions.get(name, 0) + (0 if same else 1)
        self._versions[name] = version
        row = Deployed(
            name=name,
            version=version,
            sha256=sha256,
            pool=spec["pool"],
            target=spec["target"],
            inputs=list(loaded.get("inputs") or []),
            outputs=list(loaded.get("outputs") or []),
            config=spec["config"],
            signature=loaded.get("signature"),
        )
        self._programs[name] = row
        payload = encode_value({**spec, "version": version, "sha256": sha256})
        return row, ProgramDeployed(spec["pool"], Program(name=name, program_version=version, payload=payload))

    def remove(self, name: Any) -> str:
        """Remove a program; return its name. Raises BridgeError NOT_FOUND."""
        if not isinstance(name, str):
            raise _invalid("name", f"{shown(name)} is no program name")
        if self._programs.pop(name, None) is None:
            raise not_found("program", name, self._programs)
        return name

    def rows(self) -> list[dict[str, Any]]:
        """Return every program, by name."""
        return [msgspec.structs.asdict(self._programs[name]) for name in sorted(self._programs)]


def _invalid(path: str, text: str) -> BridgeError:
    return BridgeError(INVALID_REQUEST, f"{path}: {text}", details={"path": path})
