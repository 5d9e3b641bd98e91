"""What must hold of nested requests: whose they may be, how they are admitted, and that they end with their parents.

A parent is one that runs in the worker of who asks, or has called a tool of who asks, for the same principal, and that
somebody still wants. Its child
is one deeper, of the class above all others, and has no more time. A parent that has ended, or has been lost, has no
children but such as are told to stop; one that is asked to stop passes that on.
"""

from __future__ import annotations

from typing import Final

from bridge.protocol import messages as wire
from bridge.protocol.errors import CANCELLED, INVALID_REQUEST
from pools.core.events import ClientGone
from tests.sim.keys import is_out
from tests.sim.ledger import NESTED, OUT, SETTLED, Case, Ledger
from tests.sim.step import Step, broken

MAX_DEPTH: Final = 8
_ENDS: Final = frozenset((wire.Cancel, wire.Bye, ClientGone))


class Kinship:
    """The families of one history. verdict: the code with which what has arrived must be refused, "" if with none."""

    def __init__(self, ledger: Ledger, step: Step) -> None:
        self._ledger = ledger
        self._step = step
        self._children: dict[int, dict[int, Case]] = {}
        self.verdict = ""

    # --- as they come -------------------------------------------------------------------------------

    def arrived(self, case: Case, message: wire.Request, now: float) -> None:
        """A request has arrived: if it is nested, judge its parent, and have it be what a child is."""
        self.verdict = ""
        if not message.parent_request_id:
            return
        worker_id = self._ledger.served[case.peer]
        parent = self._find(message.parent_request_id, worker_id)
        self.verdict = self._judge(parent, case, worker_id, now)
        if parent is None or self.verdict:
            return
        case.parent, case.depth, case.priority = parent.request_id, parent.depth + 1, NESTED
        if parent.deadline is not None and parent.state != SETTLED:
            left_ms = (parent.deadline - now) * 1000.0
            case.deadline_ms = left_ms if case.deadline_ms is None else min(case.deadline_ms, left_ms)
        self._ledger.set_deadline(case)

    def _find(self, request_id: int, worker_id: str) -> Case | None:
        """Return a case that is open, or whose attempt is out in this worker."""
        case = self._ledger.open.get(request_id)
        if case is not None:
            return case
        case = self._ledger.cases.get(request_id)
        if case is None or case.desk is None or not is_out(case):
            return None
        return case if case.desk.worker_id == worker_id else None

    def _judge(self, parent: Case | None, case: Case, worker_id: str, now: float) -> str:
        if parent is None:
            return CANCELLED
        desk = parent.desk
        if desk is None or not is_out(parent) or not desk.marked(parent.epoch):
            return INVALID_REQUEST
        if not (desk.worker_id == worker_id or (parent.peer == case.peer and self._ledger.calls.get(parent.epoch))):
            return INVALID_REQUEST
        if parent.principal != case.principal:
            return INVALID_REQUEST
        if parent.state == SETTLED:
            return "" if self._goes_on(parent) else CANCELLED
        return CANCELLED if parent.cancel or (parent.deadline is not None and parent.deadline <= now) else ""

    def is_too_deep(self, case: Case) -> bool:
        """Whether a case is nested deeper than any may be."""
        return case.depth > MAX_DEPTH

    def accepted(self, case: Case) -> None:
        """A case was accepted, whatever it is."""
        if self.verdict:
            broken("children have a parent", f"{case}, which {self.verdict} should have refused")
        if self.is_too_deep(case):
            broken("families end somewhere", f"{case} is nested {case.depth} deep")
        if not case.parent:
            return
        seen = self._ledger.seen
        seen["nested"] += 1
        seen["nested by a tool"] += case.peer == self._ledger.cases[case.parent].peer
        seen["nested deep"] += case.depth == MAX_DEPTH
        seen["nested in the work of others"] += self._ledger.cases[case.parent].state == SETTLED
        self._children.setdefault(case.parent, {})[case.request_id] = case

    def waits_for_itself(self, case: Case, runner: Case) -> bool:
        """Whether a nested case that followed a runner would wait for what it is nested in."""
        ancestors, parent = set(), case.parent
        while parent:
            ancestors.add(parent)
            parent = self._ledger.cases[parent].parent
        seen: set[int] = set()
        found = [runner]
        while found:
            other = found.pop()
            if other.request_id in ancestors:
                return True
            if other.request_id not in seen:
                seen.add(other.request_id)
                children = self._children.get(other.request_id, {}).values()
                found.extend(child.work.runner if child.work is not None else child for child in children)
                if other.talk is not None and other.talk.holder is not None:
                    found.append(other.talk.holder)
        return False

    # --- as they end --------------------------------------------------------------------------------

    def cancelled(self, case: Case, how: int, *, shares: bool) -> None:
        """A case is cancelled: what runs, and not for others, passes it on. shares: whether it does for others."""
        if shares or case.state != OUT or case.desk is None or not case.desk.marked(case.epoch):
            return
        for child in self._children.get(case.request_id, {}).values():
            child.cancel = max(child.cancel, how)
            self._step.must_end.append(child)
            self._ledger.seen["cancelled with its parent"] += 1
            self.cancelled(child, how, shares=child.shares_its_run)

    def settled(self, case: Case) -> None:
        """A case is settled: it is nobody's child any more."""
        siblings = self._children.get(case.parent)
        if siblings is not None and siblings.pop(case.request_id, None) is not None and not siblings:
            del self._children[case.parent]

    def is_orphan(self, case: Case) -> bool:
        """Whether nobody waits for a nested case: its parent is not at work any more, or will not be.

        Then it is cancelled by force, and from now on is said to be.
        """
        if not case.parent or case.state == SETTLED:
            return False
        parent = self._ledger.cases[case.parent]
        if parent.state == OUT and is_out(parent) and not self.is_orphan(parent):
            return False
        if parent.state == SETTLED and self._goes_on(parent):
            return False
        case.cancel = 2
        return True

    def heed(self, case: Case) -> bool:
        """Take in that a case ends before its time: if it is nested, its parent may have. Return `is_orphan`."""
        if self.is_orphan(case):
            return True
        # Who leaves may have cancelled the followers of a run before that run, which then is for nobody else.
        if case.parent and not case.cancel and type(self._step.event) in _ENDS:
            case.cancel = self._ledger.cases[case.parent].cancel
        return False

    def after(self) -> None:
        """Nobody is left whose parent has ended."""
        for children in self._children.values():
            for case in children.values():
                if self.is_orphan(case):
                    self._step.must_end.append(case)
                    self._ledger.seen["orphaned"] += 1
        for case in self._step.must_end:
            if case.state == SETTLED:
                continue
            told = case.desk is not None and is_out(case) and case.told == case.epoch
            if case.state != OUT or not told:
                broken("children end with their parents", f"{case}, {'told' if told else 'not told'}")
        self._step.must_end.clear()

    def _goes_on(self, case: Case) -> bool:
        """Whether the attempt of a settled case is wanted by others."""
        return bool(case.cancel) and case.shares_its_run and is_out(case)

    def audit(self, children: dict[int, dict[int, object]]) -> None:
        """Compare whose children the fleet has with this."""
        mine = {parent: set(known) for parent, known in self._children.items()}
        if {parent: set(known) for parent, known in children.items()} != mine:
            broken("families are known", f"{children.keys()} have children instead of {mine.keys()}")
