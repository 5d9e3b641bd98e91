"""`dspy.Parallel`: one module, many inputs, on threads of one worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import dspy  # type: ignore[import-untyped]

from bridge.protocol.errors import BridgeError
from bridge.worker import arguments
from bridge.worker.call import Call
from bridge.worker.modules.plan import Plan
from bridge.worker.plain import to_plain
from bridge.worker.running import run_module
from bridge.worker.scope import Scope

NAME: Final = "dspy.Parallel"
_OWN: Final = ("num_threads", "max_errors", "timeout", "straggler_limit", "return_failed_examples")
_MOST_THREADS: Final = 64


class Parallel:
    """Operation `dspy.Parallel {signature, inputs: [mapping, …], options}` -> a list of predictions, None for failures.

    options: `module` (dspy.Predict) and that module's own; num_threads (8), max_errors (10), timeout and
    straggler_limit as DSPy's. After `timeout` seconds DSPy runs what lags a second time; 0, the default, never does.
    With `return_failed_examples` the answer is {results, failed_examples, exceptions}. With max_errors failures, or
    when all fail, the first of them is raised.
    """

    def __init__(self, plan: Callable[[str, Any, Any], Plan], scope: Scope) -> None:
        self._plan = plan
        self._scope = scope

    def __call__(self, args: Any, call: Call) -> Any:
        """Run the operation."""
        fields = arguments.read(args, NAME, required=("signature", "inputs"), optional=("options",))
        options = dict(arguments.mapping(fields.get("options"), "options"))
        own: dict[str, Any] = {name: options.pop(name) for name in _OWN if name in options}
        kind = arguments.text(options.pop("module", "dspy.Predict"), "options.module")
        plan = self._plan(kind, fields["signature"], options)
        rows = _rows(plan, fields["inputs"])
        failures: list[Exception] = []

        def ask(row: Mapping[str, Any]) -> Any:
            try:
                return run_module(plan.module, row, call)
            except Exception as exc:
                failures.append(exc)
                raise

        most = arguments.whole(own.get("max_errors", 10), "options.max_errors", least=1)
        parallel = _parallel(own, most)
        with self._scope.enter(call, **plan.settings):
            try:
                results, failed, errors = parallel([(ask, (row,)) for row in rows])
            except Exception:
                if failures:
                    raise failures[0] from None
                raise
            call.check()
            if failures and len(failures) == len(rows):
                raise failures[0]
        if not own.get("return_failed_examples"):
            return to_plain(results)
        told = [f"{type(exc).__name__}: {exc}" for exc in errors]
        return to_plain({"results": results, "failed_examples": [row for (row,) in failed], "exceptions": told})


def _parallel(own: Mapping[str, Any], max_errors: int) -> Any:
    failed = own.get("return_failed_examples", False)
    if not isinstance(failed, bool):
        path = "options.return_failed_examples"
        raise arguments.invalid(path, f"{path} must be true or false, got {arguments.shown(failed)}")
    return dspy.Parallel(
        num_threads=arguments.whole(own.get("num_threads", 8), "options.num_threads", least=1, most=_MOST_THREADS),
        max_errors=max_errors,
        return_failed_examples=True,
        disable_progress_bar=True,
        timeout=arguments.number(own.get("timeout", 0), "options.timeout"),
        straggler_limit=arguments.whole(own.get("straggler_limit", 3), "options.straggler_limit"),
    )


def _rows(plan: Plan, rows: Any) -> list[dict[str, Any]]:
    """Return the inputs of every call, checked."""
    if not isinstance(rows, list | tuple):
        raise arguments.invalid("inputs", f"inputs of {NAME} are a list of mappings, got {arguments.shown(rows)}")
    return [_checked(plan, row, index) for index, row in enumerate(rows)]


def _checked(plan: Plan, row: Any, index: int) -> dict[str, Any]:
    try:
        return plan.inputs.check(row, NAME)
    except BridgeError as exc:
        path = f"inputs[{index}]{str(exc.details.get('path', '')).removeprefix('inputs')}"
        raise BridgeError(exc.code, f"row {index}: {exc.message}", details={**exc.details, "path": path}) from exc
