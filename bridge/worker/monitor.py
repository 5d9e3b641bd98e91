"""Watches an optimization from within: progress for the caller, a budget, and the best program so far."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from dspy.utils.callback import BaseCallback  # type: ignore[import-untyped]

from bridge.worker import arguments
from bridge.worker.call import Call
from bridge.worker.metrics import Metric

# Progress is told at most this often, and always when a phase is complete.
_PROGRESS_INTERVAL_S = 0.05


class Budget(NamedTuple):
    """What an optimization may use, None = as much as it takes: LM calls, seconds of wall time, US dollars."""

    calls: int | None = None
    seconds: float | None = None
    usd: float | None = None

    @classmethod
    def read(cls, value: Any) -> Budget:
        """Read the `budget` argument. Raises BridgeError(INVALID_REQUEST)."""
        fields = {name: one for name, one in arguments.mapping(value, "budget").items() if one is not None}
        problems = arguments.unknown_names(fields, cls._fields, "optimize", "budget.")
        if problems:
            arguments.refuse(problems)
        calls = arguments.whole(fields["calls"], "budget.calls", most=1 << 40) if "calls" in fields else None
        seconds, usd = (
            arguments.number(fields[name], f"budget.{name}") if name in fields else None for name in ("seconds", "usd")
        )
        return cls(calls, seconds, usd)


class BudgetSpent(BaseException):
    """Unwinds an optimizer whose budget is spent. A BaseException, as CallStopped is, and for the same reason."""

    def __init__(self, which: str) -> None:
        super().__init__(f"the budget of {which} is spent")
        self.which = which


class Candidate(NamedTuple):
    """A program that was scored on the whole validation set. score: percent."""

    name: str
    score: float
    program: Any


class Monitor(BaseCallback):  # type: ignore[misc]
    """A DSPy callback of one optimization, and the wrapper of its metric. Thread-safe."""

    def __init__(self, call: Call, budget: Budget) -> None:
        # The programs scored so far, and the names of those still to come, in that order.
        self.candidates: list[Candidate] = []
        self.expected_names: list[str] = []
        self.errors = 0
        self.last_error: Exception | None = None
        self._call = call
        self._budget = budget
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._lm_calls = 0
        self._phase = ""
        self._done = 0
        self._total = 0
        self._sum = 0.0
        self._told = 0.0
        self._evaluated: dict[str, Any] = {}

    @property
    def seconds(self) -> float:
        """Seconds since the optimization began."""
        return time.monotonic() - self._began

    @property
    def best(self) -> Candidate | None:
        """The best candidate so far; of equal ones the latest."""
        return max(reversed(self.candidates), key=lambda one: one.score, default=None)

    def begin(self, phase: str, total: int) -> None:
        """Start a phase that scores `total` examples."""
        with self._lock:
            self._phase, self._done, self._total, self._sum = phase, 0, total, 0.0
        self._tell(0.0, force=True)

    def measured(self, metric: Metric) -> Metric:
        """Return the metric with this monitor around it."""

        def measure(example: Any, prediction: Any, trace: Any = None) -> float:
            self.step()
            try:
                score = metric(example, prediction, trace)
            except Exception as exc:
                self.failed(exc)
                raise
            self.scored(score)
            return score

        return measure

    def scored(self, score: float) -> None:
        """Count one example of this phase."""
        with self._lock:
            self._done += 1
            self._sum += score
            complete = self._done == self._total
        self._tell(_PROGRESS_INTERVAL_S, force=complete)

    def failed(self, error: Exception) -> None:
        """Note an error that an optimizer may swallow. One error passing several modules is one."""
        with self._lock:
            if error is not self.last_error:
                self.errors += 1
                self.last_error = error

    def candidate(self, score: float, program: Any) -> None:
        """Note the next of the expected programs and its score on the validation set, in percent."""
        with self._lock:
            index = len(self.candidates)
            name = self.expected_names.pop(0) if self.expected_names else f"candidate {index}"
            self.candidates.append(Candidate(name, score, program))
        best = self.best
        self._call.emit(
            "candidate", {"index": index, "name": name, "score": score, "best": best.score if best else score}
        )

    def step(self) -> None:
        """Raise CallStopped or BudgetSpent if the optimization is to stop here."""
        self._call.step()
        budget = self._budget
        if budget.seconds is not None and self.seconds >= budget.seconds:
            raise BudgetSpent("seconds")
        if budget.usd is not None and (self._call.cost_usd or 0.0) >= budget.usd:
            raise BudgetSpent("usd")

    # --- DSPy's callbacks ---

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Take one call from the budget before it is made."""
        self.step()
        with self._lock:
            if self._budget.calls is not None and self._lm_calls >= self._budget.calls:
                raise BudgetSpent("calls")
            self._lm_calls += 1

    def on_module_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """Note what went wrong."""
        if isinstance(exception, Exception):
            self.failed(exception)

    def on_evaluate_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Begin a phase for an evaluation that an optimizer makes by itself."""
        # Read by the evaluation after this callback: its bar would be written to the log.
        instance.display_progress = False
        self._evaluated[call_id] = inputs.get("program")
        self.begin("evaluate", len(instance.devset))

    def on_evaluate_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """Note the candidate; what follows until the next evaluation is bootstrapping."""
        program = self._evaluated.pop(call_id, None)
        if exception is None and outputs is not None:
            self.candidate(outputs.score, program)
            if self.expected_names:
                self.begin("bootstrap", 0)

    def _tell(self, interval_s: float, *, force: bool) -> None:
        if not self._call.wants_events:
            return
        now = time.monotonic()
        with self._lock:
            if not force and now - self._told < interval_s:
                return
            self._told = now
            fields: Mapping[str, Any] = {
                "phase": self._phase,
                "done": self._done,
                "total": self._total,
                "score": round(100.0 * self._sum / self._done, 2) if self._done else None,
                "candidate": len(self.candidates),
                "candidates": len(self.candidates) + len(self.expected_names),
            }
        best = self.best
        self._call.emit("progress", {**fields, "best": best.score if best else None})
