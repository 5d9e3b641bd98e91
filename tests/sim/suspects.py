"""What must hold of requests that workers died of: they run alone, and after too many deaths not at all.

What ran as a worker died is a suspect, unless the fleet brought that end about. A death beside others counts once, a
death alone counts each time; the last one that counts puts its fingerprint into quarantine. A suspect that was
answered is one no more.
"""

from __future__ import annotations

from typing import Any, Final

from bridge.protocol import messages as wire
from bridge.protocol.errors import decode_error
from tests.sim.ledger import SETTLED, Case, Desk, Ledger
from tests.sim.step import broken

_FORGOTTEN_S: Final = 600.0
# Answers of what did not run to its end, or never began.
_CUT_SHORT: Final = frozenset({"CANCELLED", "DEADLINE_EXCEEDED"})

Fingerprint = tuple[tuple[str, str], bytes | None, str]


class Suspects:
    """The deaths of one history, by fingerprint. letters: what is in quarantine."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._deaths: dict[Fingerprint, tuple[int, float]] = {}
        self.letters: set[Fingerprint] = set()

    def suspects(self, fingerprint: Fingerprint, now: float) -> bool:
        """Whether what is equal to this runs alone."""
        known = self._deaths.get(fingerprint)
        return known is not None and now < known[1] + _FORGOTTEN_S

    def died(self, desk: Desk, worker: Any, now: float) -> None:
        """A worker is buried with what it held. worker: as the fleet has it, where it is said who wanted its end."""
        limit = self._ledger.config.poison_deaths
        if not limit or worker is None or (worker.kill_why and not worker.silent) or worker.told_to_stop:
            return
        begun = {epoch: case for epoch, case in desk.attempts.items() if desk.marked(epoch)}
        # Who waits does no harm.
        sent_at = {case.fingerprint: case.sent_at for epoch, case in begun.items() if epoch not in desk.paused}
        ran = sent_at.keys() - self.letters
        for fingerprint in ran:
            deaths, last_at = self._deaths[fingerprint] if self.suspects(fingerprint, now) else (0, 0.0)
            # Those that were under way at the last death, or as it was pardoned, may have had one cause from outside.
            counts = len(sent_at) == 1 and sent_at[fingerprint] >= last_at
            deaths = deaths + 1 if counts else max(1, deaths)
            self._deaths[fingerprint] = deaths, now
            self._ledger.seen["suspected"] += 1
            if counts and deaths >= limit:
                del self._deaths[fingerprint]
                self.letters.add(fingerprint)
                self._ledger.seen["quarantined"] += 1
        if ran:
            for case in self._ledger.open.values():
                case.astray = case.astray or case.fingerprint in ran

    def released(self, fingerprint: Fingerprint, now: float, *, pardoned: bool) -> None:
        """A dead letter leaves quarantine: forgotten, or pardoned, so that its next death is one too many again."""
        self.letters.discard(fingerprint)
        if pardoned:
            self._deaths[fingerprint] = self._ledger.config.poison_deaths - 1, now

    def answered(self, case: Case, reply: wire.Reply) -> None:
        """A worker answered: what ran to its end is cleared."""
        cut_short = reply.status == wire.ERROR and decode_error(reply.payload or b"").code in _CUT_SHORT
        is_sound = case.state != SETTLED and not case.cancel and not cut_short
        if is_sound and self._deaths.pop(case.fingerprint, None) is not None:
            self._ledger.seen["cleared"] += 1

    def dispatched(self, case: Case, desk: Desk, epoch: int, now: float) -> None:
        """Check that a suspect runs alone, and what is in quarantine not at all. desk: before it has the case."""
        if case.fingerprint in self.letters:
            broken("quarantine is not left", f"{case} to {desk.worker_id}")
        other = desk.attempts.get(desk.alone)
        if other is not None and desk.alone not in desk.paused and self.suspects(other.fingerprint, now):
            broken("suspects run alone", f"{case} to {desk.worker_id}, which runs {other}")
        if self._deaths and self.suspects(case.fingerprint, now):
            if desk.held:
                broken("suspects run alone", f"{case} to {desk.worker_id}, which holds {desk.held} rows more")
            desk.alone = epoch
            self._ledger.seen["ran alone"] += 1

    def audit(self, tables: Any, now: float) -> None:
        """Compare whom the fleet suspects, and keeps in quarantine, with this."""
        suspects = sum(1 for fingerprint in self._deaths if self.suspects(fingerprint, now))
        if len(tables.poison.suspects) != suspects:
            broken("suspects are those that workers died of", f"{len(tables.poison.suspects)} instead of {suspects}")
        if len(tables.poison.letters) != len(self.letters):
            broken("dead letters are kept", f"{len(tables.poison.letters)} instead of {len(self.letters)}")
