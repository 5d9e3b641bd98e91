"""What the store keeps, as values: programs' versions and aliases, sessions, events.

Times are seconds since 1970, as given by whoever saves: the store asks no clock. `JSON` is what `json.dumps` takes
without `nan` and infinities, mappings with keys of text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

JSON: TypeAlias = Any
SessionKey: TypeAlias = tuple[str, str]
"""Principal and id."""


# --- programs ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionDraft:
    """A version of a program that has no number yet. What is equal in `content` is the same version.

    source: of the target, as workers pack it; source_sha256: of that. predictors: as they were when it was loaded.
    """

    name: str
    sha256: str
    pool: str
    target: JSON
    state: JSON = None
    config: JSON = None
    inputs: Sequence[str] = ()
    outputs: Sequence[str] = ()
    signature: str = ""
    deployed_by: str = ""
    deployed_at: float = 0.0
    note: str = ""
    source: bytes | None = None
    source_sha256: str | None = None
    predictors: JSON = None

    @property
    def content(self) -> tuple[JSON, ...]:
        """What makes it another version."""
        return self.sha256, self.pool, self.target, self.state, self.config


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRow(VersionDraft):
    """A version as it is kept; it never changes. Numbers of a name count from 1, and none is given twice."""

    version: int


class VersionSummary(NamedTuple):
    """A version without what may be large."""

    name: str
    version: int
    sha256: str
    pool: str
    target: JSON
    config: JSON
    inputs: Sequence[str]
    outputs: Sequence[str]
    signature: str
    source_sha256: str | None
    deployed_by: str
    deployed_at: float
    note: str


class AliasRow(NamedTuple):
    """Which version an alias names, and which it named before; None = it is new."""

    version: int
    previous: int | None
    moved_by: str
    moved_at: float


class ProgramRow(NamedTuple):
    """A program: its aliases, how many versions of it are kept, and the last number that was given."""

    name: str
    aliases: Mapping[str, AliasRow]
    versions: int
    last_version: int


class Added(NamedTuple):
    """What became of a draft. created: False = it was there already. previous: what the alias named before."""

    row: VersionRow
    created: bool
    previous: int | None


# --- sessions ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRow:
    """A session. Of two with one key that is newer whose (generation, seq) is greater.

    state: opaque; None = there is none yet. stats: opaque. calls: how many there were. touched_at: the end of the last
    activity. turns: (seq, opaque), by seq.
    """

    principal: str
    id: str
    generation: int
    seq: int
    ttl_s: float
    options: Mapping[str, JSON] = field(default_factory=dict)
    state: bytes | None = None
    calls: int = 0
    stats: bytes = b""
    touched_at: float = 0.0
    turns: Sequence[tuple[int, bytes]] = ()

    @property
    def key(self) -> SessionKey:
        """Principal and id."""
        return self.principal, self.id


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSave(SessionRow):
    """What to save of a session. state: None = as it was. turns: new ones. first_turn: those before it are forgotten.

    ended: the session is no more, unless the store has a later generation of it.
    """

    first_turn: int = 0
    ended: bool = False


# --- events -----------------------------------------------------------------------------------------


class EventRow(NamedTuple):
    """An event of the log. seq: positive, grows, below 2**63."""

    seq: int
    at: float
    event: str
    level: str
    fields: Mapping[str, JSON]
