"""One session, as it must be after all that was said of it."""

from __future__ import annotations

from tests.sim.ledger import Case, Desk

Name = tuple[str, str]  # principal, id
Options = tuple[float, str, str]  # ttl_s, affinity, on_loss


class Talk:
    """One session. seq, state: as its last answer left them. at: where the live copy is, or was. home: where its calls
    go. holder: who has the turn. line: who waits for it, the oldest first. used_at: when it was left last.
    """

    __slots__ = (
        "at", "ended", "generation", "holder", "home", "kept", "line", "lost", "name", "options", "seq", "state",
        "used_at",
    )  # fmt: skip

    def __init__(self, name: Name, options: Options, now: float) -> None:
        self.name = name
        self.options = options
        self.used_at = now
        self.generation = 0
        self.seq = 0
        self.state = b""
        self.at: Desk | None = None
        self.home: Desk | None = None
        self.holder: Case | None = None
        self.line: dict[int, Case] = {}
        self.kept = self.lost = self.ended = False

    @property
    def key(self) -> str:
        return "\0".join(self.name)

    @property
    def busy(self) -> bool:
        return self.holder is not None or bool(self.line)

    def has_expired(self, now: float) -> bool:
        return not self.busy and self.used_at + self.options[0] <= now

    def __repr__(self) -> str:
        return f"session {self.name[1]} of {self.name[0]} ({self.generation & 0xFFFFFFFF})"
