"""The store of a world whose sessions are kept: now and then it cannot be written, or nobody says that it was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from bridge.protocol import messages as wire
from pools.core.events import (
    SaveBatch,
    SessionImage,
    SessionRestored,
    SessionsSaved,
    SessionsSynced,
    SessionsUnsaved,
    Tick,
)
from pools.core.fleet import Fleet
from tests.sim.ledger import Broken, Case, label
from tests.sim.noise import Noise

if TYPE_CHECKING:
    from tests.sim.talk import Talk
    from tests.sim.world import World

_WRITES_S: Final = 0.004
_AGAIN_S: Final = 0.2
_UNSAID: Final = 0.05
_OLD: Final = "old"


class Keeper:
    """rows: what is in the store, by principal and id. held: answers that wait for it, by request id, with the case
    and the change of its session.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._noise = Noise(world.seed, "keeper")
        self.rows: dict[tuple[str, str], SessionImage] = {}
        self.held: dict[int, tuple[wire.Reply, Case, int]] = {}
        self.news: list[tuple[bytes, wire.Reply]] = []  # answers that the fleet has held back in this step
        self._is_out = self._must_wait = False
        self.fails_until = 0.0
        saves: Any = world.fleet._tables.saves
        holds = saves.holds

        def noting(session: Any, peer: bytes, reply: wire.Reply, *args: Any) -> bool:
            is_held = holds(session, peer, reply, *args)
            if is_held:
                self.news.append((peer, reply))
            return bool(is_held)

        saves.holds = noting

    # --- the run before -----------------------------------------------------------------------------

    def begin(self) -> None:
        """Restore what a run before has kept; say so at once, or late."""
        world, noise = self._world, self._noise
        if noise.next() < 0.5:
            on_loss = "fail" if noise.next() < 0.3 else "restore"
            state = b"of a run before"
            image = SessionImage("ann", "s1", 7, 3, 5.0, "hint", on_loss, state, ((4, b"turn"),), 4, 2)
            self.rows["ann", "s1"] = image
            world.shell.step(SessionRestored(image))
        late_s = 0.0 if noise.next() < 0.7 else 0.6
        if late_s:
            world.shell.step(SessionsSynced("the store is broken"))
        world.clock.after(late_s, world.shell.look, world.shell.step, SessionsSynced())

    # --- keeping ------------------------------------------------------------------------------------

    def look(self) -> None:
        """See whether anything is to be kept, and nothing is on its way."""
        if not self._is_out and not self._must_wait and self._world.fleet.unsaved_sessions:
            self._is_out = True
            self._world.clock.after(0.0, self._world.shell.look, self._take)

    def _take(self) -> None:
        batch = self._world.fleet.take_unsaved(self._world.clock.now)
        if batch is None:
            self._is_out = False
        else:
            self._world.clock.after(_WRITES_S * self._noise.next(), self._write, batch)

    def _write(self, batch: SaveBatch) -> None:
        world = self._world
        fails = world.clock.now < self.fails_until
        if not fails:
            for image in batch.images:
                self._keep(image)
        fails = fails or (self._noise.next() < _UNSAID and not world.is_calm)
        world.seen["sessions unsaved" if fails else "sessions saved"] += 1
        world.clock.after(_WRITES_S * self._noise.next(), world.shell.look, self._say, batch.token, fails)

    def _keep(self, image: SessionImage) -> None:
        name = image.principal, image.id
        row = self.rows.get(name)
        is_same = row is not None and row.generation == image.generation
        if row is not None and (image.generation, image.seq) < (row.generation, row.seq):
            raise Broken("what is kept is the latest", f"{image} over {row}")
        if image.ended:
            self.rows.pop(name, None)
            return
        state = image.state
        if state is None:
            state = row.state if row is not None and is_same else b""
        self.rows[name] = replace(image, state=state)

    def _say(self, token: int, fails: bool) -> None:
        self._is_out = False
        if fails:
            self._must_wait = True
            self._world.clock.after(_AGAIN_S, self._again)
            self._world.shell.step(SessionsUnsaved(token, "the store is broken"))
        else:
            self._world.shell.step(SessionsSaved(token))
        self.look()

    def _again(self) -> None:
        self._must_wait = False
        self.look()

    @property
    def is_quiet(self) -> bool:
        """Whether all is kept."""
        return not (self._is_out or self._must_wait or self.held or self._world.fleet.unsaved_sessions)

    # --- what waits for it --------------------------------------------------------------------------

    def hold(self, reply: wire.Reply, case: Case | None) -> None:
        """An answer waits until its session is kept as it is now."""
        if case is None or case.talk is None:
            raise Broken("answers wait for their session", label(reply.request_id))
        self._world.seen["answer held back"] += 1
        self.held[reply.request_id] = reply, case, case.talk.seq

    def release(self, reply: wire.Reply, event: Any) -> bool:
        """Return whether an answer is one that waited; check that it need not any more."""
        known = self.held.pop(reply.request_id, None)
        if known is None:
            return False
        answer, case, seq = known
        talk: Talk = case.talk
        if reply != answer:
            raise Broken("answers wait for their session", f"{reply} instead of {answer}")
        if type(event) is SessionsSaved:
            row = self.rows.get(talk.name)
            is_there = row is not None and (row.generation, row.seq) >= (talk.generation, seq)
            if not (is_there or talk.ended):
                raise Broken("what is answered is kept", f"{talk}, change {seq}: {row}")
        elif talk.ended:
            self._world.seen["answer of what has ended"] += 1
        elif type(event) is Tick and case.deadline is not None and case.deadline <= self._world.clock.now:
            self._world.seen["answer out of time"] += 1
        elif type(event) is not SessionsUnsaved and self._world.ledger.drain_due is None:
            raise Broken("what is answered is kept", f"{talk}, change {seq}, at {type(event).__name__}")
        else:
            self._world.seen["answer let go"] += 1
        return True

    def check_unheld(self, reply: wire.Reply, case: Case | None) -> None:
        """Check an answer that does not wait, though the call has just changed its session."""
        saves: Any = self._world.fleet._tables.saves
        if case is None or case.request_id != reply.request_id or case.talk is None or case.base is None:
            return
        if not saves.holding or case.talk.ended:
            return
        if case.base[0] < case.talk.seq:
            row = self.rows.get(case.talk.name)
            seq = row.seq if row is not None and row.generation == case.talk.generation else 0
            if seq < case.talk.seq:
                raise Broken(
                    "what is answered is kept", f"{case} of {case.talk}: change {case.talk.seq}, {seq} is kept"
                )

    # --- the end ------------------------------------------------------------------------------------

    def check(self) -> None:
        """All is kept as it is; a run to come has it again."""
        talks = {name: talk for name, talk in self._world.auditor.sessions.talks.items() if talk.kept}
        kept = {name: (row.generation, row.seq, row.state) for name, row in self.rows.items()}
        wanted = {name: (talk.generation, talk.seq, talk.state) for name, talk in talks.items()}
        if kept != wanted:
            raise Broken("sessions are kept as they are", f"{kept} instead of {wanted}")
        now = self._world.clock.now
        heir = Fleet(self._world.ledger.config, lms=frozenset(), random=lambda: 0.0, open_page=lambda _: [], run=2)
        for row in self.rows.values():
            heir.handle(SessionRestored(row), now)
        for name, row in self.rows.items():
            session = heir._tables.sessions.by_key["\0".join(name)]
            restored = session.generation, session.seq, session.state, bool(session.lost)
            if restored != (*kept[name], row.on_loss == "fail"):
                raise Broken("sessions are restored as they were", f"{restored} instead of {kept[name]}")
