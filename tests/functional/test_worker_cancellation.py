"""Where a program stops that is cancelled or out of time: at its next boundary; a language model is not waited for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge.worker.call import Call, CallStopped
from bridge.worker.operations import Operations
from tests.support.operations import built, deploying, run

PROGRAMS = '''
import asyncio
import threading
import dspy
from bridge.worker.call import current_call

def act(number: int) -> int:
    """Act once more; in the third act the call is cancelled."""
    acts.append(number)
    if len(acts) == 3:
        current_call.get().cancel()
    return number

acts = []
tool = dspy.Tool(act)
ask = dspy.Predict("number: int -> same: int")

class Tools(dspy.Module):
    def forward(self):
        for number in range(10):
            tool(number=number)

class Asks(dspy.Module):
    def forward(self):
        for number in range(10):
            act(number)
            ask(number=number)

class AsksAsync(dspy.Module):
    async def answer(self):
        for number in range(10):
            act(number)
            await ask.acall(number=number)

    def forward(self):
        asyncio.run(self.answer())

class AsksModel(dspy.Module):
    def forward(self):
        for number in range(10):
            act(number)
            dspy.settings.lm("hello")

class Swallows(dspy.Module):
    def forward(self):
        for number in range(10):
            act(number)
            try:
                ask(number=number)
            except Exception:
                pass

class Fans(dspy.Module):
    def forward(self):
        dspy.Parallel(num_threads=4, disable_progress_bar=True)([(ask, {"number": n}) for n in range(40)])
'''

OPTIMIZE = {
    "program": {"target": {"module": "dspy.Predict", "signature": "word -> kind"}},
    "trainset": [{"word": f"word {number}", "kind": "kind"} for number in range(8)],
    "metric": "exact:kind",
    "params": {"num_threads": 4},
}
# What waits for a language model that takes half a minute.
WAITING: dict[str, Any] = {
    "dspy.Predict": {"signature": "question -> answer", "inputs": {"question": "why?"}},
    "dspy.ReAct": {"signature": "question -> answer", "inputs": {"question": "why?"}},
    "fans": {},
    "optimize": OPTIMIZE,
}


@pytest.fixture(scope="module")
def ops() -> Iterator[Operations]:
    with built() as operations:
        yield operations


@pytest.fixture
def deploy(ops: Operations, tmp_path: Path) -> Iterator[Callable[[str, str], None]]:
    """Deploys a class of the file under a name."""
    (tmp_path / "acts.py").write_text(PROGRAMS)
    with deploying(ops) as define:
        yield lambda name, attribute: define(name, target=f"{tmp_path}/acts.py:{attribute}")


@pytest.mark.parametrize("program", ["Tools", "Asks", "AsksAsync", "AsksModel", "Swallows"])
def test_a_cancelled_program_stops_at_its_next_step(ops: Operations, deploy: Any, program: str) -> None:
    deploy("acts", program)
    with pytest.raises(CallStopped) as caught:
        run(ops, "acts", {})
    assert caught.value.error.code == "CANCELLED"
    acts = _globals_of(caught.value)["acts"]
    assert acts == [0, 1, 2]


@pytest.mark.parametrize("why", ["CANCELLED", "DEADLINE_EXCEEDED"])
@pytest.mark.parametrize("operation", WAITING)
def test_what_waits_for_a_language_model_stops_at_once(ops: Operations, deploy: Any, operation: str, why: str) -> None:
    deploy("fans", "Fans")
    began_s = time.monotonic()
    call = Call(1, 1, operation, lm="slow", deadline=began_s + 0.3 if why == "DEADLINE_EXCEEDED" else None)
    timer = threading.Timer(0.3, call.cancel)
    if why == "CANCELLED":
        timer.start()
    with pytest.raises(CallStopped) as caught:
        run(ops, operation, WAITING[operation], call=call)
    timer.cancel()
    assert caught.value.error.code == why
    assert 0.25 < time.monotonic() - began_s < 3


def _globals_of(exc: BaseException) -> dict[str, Any]:
    """Return the module's names of the program that an exception came through."""
    trace = exc.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.endswith("acts.py"):
            return trace.tb_frame.f_globals
        trace = trace.tb_next
    raise AssertionError("it came through no program")
