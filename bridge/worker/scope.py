"""The DSPy context that one request runs in: its language model, its callbacks, nobody else's state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import dspy  # type: ignore[import-untyped]
from dspy.utils.callback import BaseCallback  # type: ignore[import-untyped]

from bridge.protocol.errors import BridgeError
from bridge.worker.call import Call, current_call
from bridge.worker.lm import LanguageModels, translate
from bridge.worker.lm.offline import OfflineEngine
from bridge.worker.sandbox import Interpreter
from bridge.worker.surroundings import Surroundings

# All that these do is to call their language model, whose engine steps by itself: they have no other boundaries.
_PLAIN = frozenset({dspy.Predict, dspy.ChainOfThought})
# What BootstrapFewShot and its like read their demonstrations from.
_TRACE_STEPS = 10_000


class CallBoundary(BaseCallback):  # type: ignore[misc]
    """Stops a program between its steps, and keeps its Call known on the threads that DSPy starts.

    DSPy hands its settings, and so this callback, to the threads of its executors, but no other context variable.
    A CallStopped passes through DSPy: it catches and logs only ordinary exceptions of callbacks.
    """

    def __init__(self, call: Call) -> None:
        self._call = call

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Step: a module is called."""
        self._step()

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Step: a language model is called."""
        self._step()

    def on_tool_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Step: a tool is called."""
        self._step()

    def _step(self) -> None:
        if current_call.get() is not self._call:
            # Such a thread belongs to this request alone, so nothing is put back.
            current_call.set(self._call)
        self._call.step()


class Scope:
    """Opens the context of a request, with the language model that the request names."""

    def __init__(self, models: LanguageModels) -> None:
        self._models = models
        self._surroundings = Surroundings()

    def language_model(self, name: str) -> Any:
        """Return the language model of a name, "" = default. Raises BridgeError(NOT_FOUND)."""
        return self._models.get(name)

    def answers_at_once(self, module: Any, call: Call) -> bool:
        """Tell whether a module only asks the call's language model, which answers in this process without waiting."""
        if type(module) not in _PLAIN:
            return False
        try:
            engine = self._models.get(call.lm).engine
        except BridgeError:
            return False  # what is wrong is told when it is needed
        return isinstance(engine, OfflineEngine) and not engine.options.latency_ms

    @contextmanager
    def enter(
        self, call: Call, *, tracing: bool = False, callbacks: Sequence[Any] = (), module: Any = None, **more: Any
    ) -> Iterator[None]:
        """Run the body as DSPy work of `call`.

        module: all that the body calls, where that is known. tracing: keep the trace of the predictors, as optimizers
        need. more: further DSPy settings.
        Raises BridgeError: NOT_FOUND for an unknown language model, LM_ERROR for what a language model raised.
        """
        settings = {
            "lm": self._models.get(call.lm),
            "adapter": None,
            # As few as can be: the first costs a predictor a quarter of its time. Language models carry their own.
            "callbacks": [*callbacks] if type(module) in _PLAIN else [CallBoundary(call), *callbacks],
            "track_usage": True,
            "usage_tracker": None,
            "disable_history": True,
            # Never None: BestOfN extends it. A list of this request's own: the default one is shared by all.
            "trace": [],
            "max_trace_size": _TRACE_STEPS if tracing else 0,
            # What runs generated code, also in programs of users that name no other.
            "interpreter_factory": Interpreter,
            **more,
        }
        token = current_call.set(call)
        try:
            with self._surroundings.kept(), dspy.context(**settings):
                yield
        except Exception as exc:
            error = translate(exc)
            if error is None:
                raise
            raise error from exc
        finally:
            current_call.reset(token)
