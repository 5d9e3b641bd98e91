"""The operation `optimize`: DSPy's few-shot optimizers on a program, with progress, a budget, a plain result."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, NamedTuple

import dspy  # type: ignore[import-untyped]
import pydantic_core
from dspy.teleprompt import BootstrapFewShot, BootstrapFewShotWithRandomSearch, LabeledFewShot  # type: ignore[import-untyped]

from bridge.protocol.errors import not_found
from bridge.worker import arguments, dataset, metrics, program_state
from bridge.worker.call import Call
from bridge.worker.loading import Loaded
from bridge.worker.metrics import Metric
from bridge.worker.monitor import Budget, BudgetSpent, Candidate, Monitor
from bridge.worker.programs import Programs
from bridge.worker.scope import Scope

DEFAULT_THREADS: Final = 8
DEFAULT_MAX_ERRORS: Final = 10
UNOPTIMIZED: Final = "unoptimized"

# Parameters that each optimizer takes, beyond the common ones.
_BOOTSTRAP: Final = ("metric_threshold", "max_bootstrapped_demos", "max_labeled_demos", "max_rounds")
OPTIMIZERS: Final[dict[str, tuple[str, ...]]] = {
    "LabeledFewShot": ("k",),
    "BootstrapFewShot": _BOOTSTRAP,
    "BootstrapFewShotWithRandomSearch": (*_BOOTSTRAP, "num_candidate_programs", "stop_at_score"),
}
_COMMON: Final = ("num_threads", "max_errors")
_FRACTIONAL: Final = ("metric_threshold", "stop_at_score")
_DEFAULT_CANDIDATES: Final = 16


class _Plan(NamedTuple):
    """Everything an optimization needs, read and checked."""

    loaded: Loaded
    data: dataset.Dataset
    metric: Metric
    optimizer: str
    params: dict[str, Any]
    threads: int
    max_errors: int


class Optimize:
    """Operation `optimize {program, optimizer, trainset, valset, metric, params, seed, budget}`.

    program: the name of a deployed program, or a spec as `programs.load` takes. metric: a native
    metric of a field, as in `exact:team` and `f1:answer`, or an import path. budget: {calls, seconds, usd}. Seeded:
    the same arguments give the same program and score wherever the language model gives the same answers.

    Returns {program, score, baseline_score, chosen, candidates, usage, optimizer, metric, seed, seconds, errors,
    stopped, train_rows, validation_rows}. `program` is the state of the best candidate on the validation set, the
    unoptimized program among them; scores are percent. `stopped` names the budget that ended the search, else None.
    A budget that is spent before the unoptimized program is scored is an INVALID_REQUEST. Cancellation and deadlines
    stop it at the next step (a metric, a module, an LM call), with CallStopped.

    Events: `started`, `progress {phase, done, total, score, best, candidate, candidates}`, `candidate {index, name,
    score, best}`, `finished`. Phases are baseline, bootstrap (total 0: its end is not known), evaluate; `candidate` of
    `candidates` programs, the unoptimized one among them, are scored so far.
    """

    def __init__(self, programs: Programs, scope: Scope) -> None:
        self._programs = programs
        self._scope = scope

    def __call__(self, args: Any, call: Call) -> dict[str, Any]:
        """Run the operation."""
        fields = arguments.read(
            args, "optimize", required=("program", "trainset", "metric"),
            optional=("optimizer", "valset", "params", "seed", "budget"),
        )  # fmt: skip
        seed = arguments.whole(fields.get("seed", 0), "seed", most=1 << 62)
        monitor = Monitor(call, Budget.read(fields.get("budget")))
        with self._scope.enter(call, tracing=True, callbacks=[monitor]):
            plan = self._read(fields, seed)
            told = {"optimizer": plan.optimizer, "metric": fields["metric"], "seed": seed,
                    "train_rows": len(plan.data.train), "validation_rows": len(plan.data.validation)}  # fmt: skip
            call.emit("started", told)
            with dspy.context(**plan.loaded.settings):
                stopped = _search(plan, monitor)
        best = monitor.best
        assert best is not None  # the unoptimized program is a candidate, or _search has raised
        outcome = {"score": best.score, "baseline_score": monitor.candidates[0].score, "chosen": best.name,
                   "seconds": round(monitor.seconds, 3), "errors": monitor.errors, "stopped": stopped}  # fmt: skip
        call.emit("finished", outcome)
        usage = {"lm_calls": call.lm_calls, "tokens": call.tokens, "cost_usd": call.cost_usd}
        ranked = sorted(monitor.candidates, key=lambda one: -one.score)
        return {
            **told, **outcome, "usage": usage, "program": _state(best.program), "candidates": [_told(c) for c in ranked]
        }  # fmt: skip

    def _read(self, fields: Mapping[str, Any], seed: int) -> _Plan:
        optimizer = fields.get("optimizer", "BootstrapFewShot")
        if optimizer not in OPTIMIZERS:
            raise not_found("optimizer", str(optimizer), OPTIMIZERS)
        params = _read_params(optimizer, fields.get("params"))
        program = fields["program"]
        loaded = self._programs.load(program if isinstance(program, str) else _spec(program))
        if not loaded.module.predictors():
            raise arguments.invalid("program", "the program has no predictor to optimize")
        metric = metrics.find_metric(fields["metric"])
        names = loaded.inputs.names or tuple(loaded.module.predictors()[0].signature.input_fields)
        required = [name for name in names if name not in loaded.inputs.fields or loaded.inputs.fields[name].required]
        if (field := metrics.label_field(fields["metric"])) is not None:
            required.append(field)
        data = dataset.read(fields["trainset"], fields.get("valset"), inputs=names, required=required, seed=seed)
        threads = params.pop("num_threads", DEFAULT_THREADS)
        max_errors = params.pop("max_errors", DEFAULT_MAX_ERRORS)
        return _Plan(loaded, data, metric, optimizer, params, threads, max_errors)


def _spec(program: Any) -> dict[str, Any]:
    spec = arguments.mapping(program, "program")
    if "target" not in spec:
        raise arguments.invalid("program.target", "program is a name, or a mapping with a target")
    return spec


def _read_params(optimizer: str, value: Any) -> dict[str, Any]:
    params = {name: one for name, one in arguments.mapping(value, "params").items() if one is not None}
    problems = arguments.unknown_names(params, (*OPTIMIZERS[optimizer], *_COMMON), optimizer, "params.")
    if problems:
        arguments.refuse(problems)
    for name, one in params.items():
        if name in _FRACTIONAL:
            arguments.number(one, f"params.{name}")
        else:
            least = 1 if name in ("num_threads", "max_errors", "max_rounds") else 0
            arguments.whole(one, f"params.{name}", least=least, most=64 if name == "num_threads" else 100_000)
    return params


def _search(plan: _Plan, monitor: Monitor) -> str | None:
    """Score the unoptimized program, then let the optimizer work. Return the budget that ended it early, or None."""
    try:
        monitor.expected_names = [UNOPTIMIZED, *_candidate_names(plan)]
        monitor.candidate(_evaluate(plan.loaded.module, "baseline", plan, monitor), plan.loaded.module)
        compiled = _compile(plan, monitor)
        if not any(one.program is compiled for one in monitor.candidates):
            monitor.candidate(_evaluate(compiled, "evaluate", plan, monitor), compiled)
    except BudgetSpent as exc:
        if not monitor.candidates:
            text = f"budget.{exc.which} was spent before the unoptimized program was scored; give more"
            raise arguments.invalid(f"budget.{exc.which}", text) from exc
        return exc.which
    return None


def _candidate_names(plan: _Plan) -> list[str]:
    """Return what the optimizer's candidates are called, in the order in which they are scored."""
    if plan.optimizer != "BootstrapFewShotWithRandomSearch":
        return [plan.optimizer]
    count = plan.params.get("num_candidate_programs", _DEFAULT_CANDIDATES)
    return ["zero-shot", "labeled", "bootstrap", *(f"shuffle {number}" for number in range(count))]


def _compile(plan: _Plan, monitor: Monitor) -> Any:
    """Return the program that the optimizer makes. What it swallows and gives up on is raised as it was."""
    monitor.begin("bootstrap", len(plan.data.train))
    measured = monitor.measured(plan.metric)
    params, student, train = plan.params, plan.loaded.module, plan.data.train
    try:
        if plan.optimizer == "LabeledFewShot":
            return LabeledFewShot(**params).compile(student, trainset=train)
        if plan.optimizer == "BootstrapFewShot":
            optimizer = BootstrapFewShot(measured, max_errors=plan.max_errors, **params)
            return optimizer.compile(student, trainset=train)
        search = BootstrapFewShotWithRandomSearch(
            measured, max_errors=plan.max_errors, num_threads=plan.threads, **params
        )
        return search.compile(student, trainset=train, valset=plan.data.validation)
    except Exception as exc:
        cause = monitor.last_error
        if cause is None or cause is exc:
            raise
        raise cause from exc


def _evaluate(program: Any, phase: str, plan: _Plan, monitor: Monitor) -> float:
    """Return the mean score of a program on the validation set, in percent.

    An example whose program or metric raises scores 0; more than `max_errors` of them, or all, raise the first error:
    a language model that is down is no bad program.
    """
    examples = plan.data.validation
    monitor.begin(phase, len(examples))
    measure = monitor.measured(plan.metric)

    def score(example: Any) -> float | Exception:
        try:
            return measure(example, program(**example.inputs()), None)
        except Exception as exc:  # noqa: BLE001 - counted, and raised below when there are too many
            monitor.failed(exc)
            monitor.scored(0.0)
            return exc

    outcomes = _run_all(score, examples, plan.threads)
    errors = [one for one in outcomes if isinstance(one, Exception)]
    if errors and (len(errors) > plan.max_errors or len(errors) == len(outcomes)):
        raise errors[0]
    scores = [one for one in outcomes if not isinstance(one, Exception)]
    return round(100.0 * sum(scores) / len(examples), 2)


def _run_all(
    function: Callable[[Any], float | Exception], examples: list[Any], threads: int
) -> list[float | Exception]:
    """Map on threads that have this request's context, in order. What stops one stops all."""
    pool = ThreadPoolExecutor(min(threads, len(examples)), thread_name_prefix="optimize")
    try:
        futures: list[Future[float | Exception]] = [
            pool.submit(contextvars.copy_context().run, function, example) for example in examples
        ]
        return [future.result() for future in futures]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _state(program: Any) -> dict[str, Any]:
    """Return the program's state as plain JSON data, with its fields named and without a language model."""
    state: dict[str, Any] = pydantic_core.to_jsonable_python(program.dump_state(), fallback=str, serialize_unknown=True)
    return program_state.named(program, state)


def _told(candidate: Candidate) -> dict[str, Any]:
    return {"name": candidate.name, "score": candidate.score, "program": _state(candidate.program)}
