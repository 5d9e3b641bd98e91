"""What a deployment may say: checked before any worker is asked to load it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from bridge.protocol.errors import not_found
from bridge.protocol.names import is_taken
from bridge.worker import arguments
from bridge.worker.arguments import invalid, shown

LIVE: Final = "live"
MAX_NOTE_CHARS: Final = 1000
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,99}")
_ALIAS: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,49}")
_KEYS: Final = ("pool", "state", "config", "alias", "warm", "note")


class Deployment(NamedTuple):
    """What is to be deployed. alias: what is to name it. warm: workers load it before the alias does."""

    name: str
    target: Any
    pool: str
    state: dict[str, Any] | None
    config: dict[str, Any] | None
    alias: str
    warm: bool
    note: str

    @property
    def spec(self) -> dict[str, Any]:
        """What a worker is asked to load."""
        return {key: getattr(self, key) for key in ("name", "target", "pool", "state", "config")}


def read(args: Any, pools: Sequence[str], *, allow_pickled: bool) -> Deployment:
    """Read the arguments of `programs.deploy`. Raises BridgeError that names the path at fault."""
    given = arguments.read(args, "programs.deploy", required=("name", "target"), optional=_KEYS)
    note = given.get("note") or ""
    if not isinstance(note, str) or len(note) > MAX_NOTE_CHARS:
        raise invalid("note", f"note: {shown(note)} is no text of at most {MAX_NOTE_CHARS} characters")
    warm = given.get("warm", False)
    if not isinstance(warm, bool):
        raise invalid("warm", f"warm: {shown(warm)} is neither true nor false")
    alias = given.get("alias")
    return Deployment(
        name=program_name(given["name"]),
        target=_target(given["target"], allow_pickled=allow_pickled),
        pool=_pool(given.get("pool"), pools),
        state=_state(given.get("state")),
        config=_config(given.get("config")),
        alias=LIVE if alias is None else alias_name(alias),
        warm=warm,
        note=note,
    )


def program_name(name: Any) -> str:
    """Return a name that a program may have. Raises BridgeError(INVALID_REQUEST)."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise invalid("name", f"name: {shown(name)} is no program name (letters, digits, _ . -; up to 100)")
    if is_taken(name):
        raise invalid("name", f"name: {name!r} is a built-in operation's name")
    return name


def alias_name(alias: Any, path: str = "alias") -> str:
    """Return a name that an alias may have: no number, which would be a version. Raises INVALID_REQUEST."""
    if not isinstance(alias, str) or not _ALIAS.fullmatch(alias):
        text = f"{path}: {shown(alias)} is no alias (a letter or _, then letters, digits, _ -; up to 50)"
        raise invalid(path, text)
    return alias


def _pool(pool: Any, pools: Sequence[str]) -> str:
    pool = pool or "general"
    if not isinstance(pool, str):
        raise invalid("pool", f"pool: {shown(pool)} is no pool's name")
    if pool not in pools:
        raise not_found("pool", pool, pools)
    return pool


def _target(target: Any, *, allow_pickled: bool) -> Any:
    if isinstance(target, dict) and "pickled" in target:
        if not allow_pickled:
            text = "target: programs from pickles run whatever is in them; security.allow_pickled_programs is not set"
            raise invalid("target", text)
    elif not (isinstance(target, str) and ":" in target) and not isinstance(target, dict):
        raise invalid(
            "target", f'target: {shown(target)} is no target: "package.module:Class", "file.py:Class" or a mapping'
            ' {"module": "dspy.Predict", "signature": "…"}',
        )  # fmt: skip
    return target


def _state(state: Any) -> dict[str, Any] | None:
    if state is not None and not isinstance(state, dict):
        raise invalid("state", "state: a program's state is a mapping, as dspy's dump_state returns it")
    return state


def _config(config: Any) -> dict[str, Any] | None:
    if config is not None and not (isinstance(config, dict) and all(isinstance(key, str) for key in config)):
        raise invalid("config", f"config: a program's config is a mapping with text keys, got {shown(config)}")
    return config
