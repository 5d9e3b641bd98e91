"""What is loaded before workers are forked: DSPy, what a worker imports of ours, and what first calls would load."""

from __future__ import annotations

import importlib
from typing import Final

from bridge.worker import __main__ as worker
from bridge.worker import operations
from bridge.worker.call import Call

# Imported by `operations.build` and by DSPy when they are first needed.
_MODULES: Final = (
    "dspy",
    "zmq",
    worker.__name__,
    "bridge.worker.embed",
    "bridge.worker.lm",
    "bridge.worker.modules",
    "bridge.worker.optimize",
    "bridge.worker.programs",
    "bridge.worker.scope",
)


def load() -> None:
    """Import all of it, read the price list, and have a module answer once: DSPy builds much at its first call.

    Nothing is configured, and nothing is left open.
    """
    operations.prepare_environment("")
    for module in _MODULES:
        importlib.import_module(module)
    _load_prices()
    _answer_once()


def _load_prices() -> None:
    from dspy.clients import model_metadata  # type: ignore[import-untyped]

    model_metadata._load()


def _answer_once() -> None:
    from bridge.worker.lm import LanguageModels
    from bridge.worker.modules import Modules
    from bridge.worker.scope import Scope

    models = LanguageModels({"default": {"model": "offline/knn"}})
    predict = Modules(Scope(models)).operations()["dspy.Predict"]
    arguments = {"signature": "question -> answer", "inputs": {"question": "Is this worker warm?"}}
    predict(arguments, Call(0, 0, "dspy.Predict"))
    models.close()
