"""Programs of users that hold modules of other files, their own and DSPy's: calls, state, options, adapters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

from bridge.worker.call import Call
from bridge.worker.operations import Operations
from tests.support.operations import built, deploying, refused, run

PARTS = """
import dspy

class Ask(dspy.Module):
    def __init__(self, style="plain"):
        super().__init__()
        self.answer = dspy.ChainOfThought("question -> answer")
        self.style = style

    def forward(self, question):
        return self.answer(question=question)

class AskLater(dspy.Module):
    def __init__(self):
        super().__init__()
        self.answer = dspy.Predict("question -> answer")

    async def aforward(self, question):
        return await self.answer.acall(question=question)
"""
WHOLE = """
import dspy
from ask_parts import Ask, AskLater

class Whole(dspy.Module):
    def __init__(self, times=2):
        super().__init__()
        self.asks = [Ask() for _ in range(times)]
        self.by_name = {"judge": dspy.Predict("question, first, second -> verdict")}

    def forward(self, question):
        first, second = (ask(question=question).answer for ask in self.asks)
        verdict = self.by_name["judge"](question=question, first=first, second=second).verdict
        adapter = type(dspy.settings.adapter).__name__
        return dspy.Prediction(verdict=verdict, answers=[first, second], adapter=adapter)

class Later(dspy.Module):
    def __init__(self):
        super().__init__()
        self.ask = AskLater()

    async def aforward(self, question):
        return await self.ask.acall(question=question)

class Recursive(dspy.Module):
    def __init__(self):
        super().__init__()
        self.again = Whole()

    def forward(self, question):
        return self.again(question=question)
"""


@pytest.fixture(scope="module")
def ops() -> Iterator[Operations]:
    with built() as operations:
        yield operations


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nested")
    (path / "ask_parts.py").write_text(PARTS)
    (path / "whole.py").write_text(WHOLE)
    return path


def taught(module: Any, answer: str) -> Any:
    """Return the state of a module whose every predictor has one demonstration."""
    for _, predictor in module.named_predictors():
        inputs = {name: "anything" for name in predictor.signature.input_fields}
        outputs = {name: answer for name in predictor.signature.output_fields}
        predictor.demos = [dspy.Example(**inputs, **outputs)]
    return module.dump_state()


def test_modules_of_another_file_are_called_and_counted(ops: Operations, folder: Path) -> None:
    with deploying(ops) as define:
        define("whole", target=f"{folder}/whole.py:Whole")
        call = Call(1, 1, "whole")
        result = run(ops, "whole", {"question": "what is up?"}, call=call)
        assert len(result.answers) == 2
        assert call.lm_calls == 3


def test_state_loads_into_nested_predictors(ops: Operations, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder)
    import whole  # type: ignore[import-not-found]

    state = taught(whole.Recursive(), "as taught")
    assert sorted(state) == ["again.asks[0].answer.predict", "again.asks[1].answer.predict", "again.by_name['judge']"]
    with deploying(ops) as define:
        define("taught", target=f"{folder}/whole.py:Recursive", state=state)
        result = run(ops, "taught", {"question": "what is up?"})
        assert (result.verdict, result.answers) == ("as taught", ["as taught"] * 2)
        define("plain", target=f"{folder}/whole.py:Recursive")
        assert run(ops, "plain", {"question": "what is up?"}).verdict != "as taught"
    state["again.asks[2].answer.predict"] = state.pop("again.asks[0].answer.predict")
    error = refused(ops, "programs.load", {"target": f"{folder}/whole.py:Recursive", "state": state})
    assert error.details["path"] == "state"


def test_a_program_that_is_asynchronous_alone(ops: Operations, folder: Path) -> None:
    with deploying(ops) as define:
        define("later", target=f"{folder}/whole.py:Later")
        assert run(ops, "later", {"question": "what is up?"}).answer


@pytest.mark.parametrize("kind", ["dspy.Predict", "dspy.ReAct", "dspy.ReActV2"])
def test_state_of_dspys_own_modules(ops: Operations, kind: str) -> None:
    signature = "question -> answer"
    own = {"dspy.Predict": dspy.Predict, "dspy.ReAct": lambda text: dspy.ReAct(text, []),
           "dspy.ReActV2": lambda text: dspy.ReActV2(text, [])}[kind](signature)  # fmt: skip
    with deploying(ops) as define:
        define("own", target={"module": kind, "signature": signature}, state=own.dump_state())
        assert run(ops, "own", {"question": "what is up?"}).answer


@pytest.mark.parametrize("adapter", ["chat", "json", "xml", "two_step", "baml"])
def test_the_adapter_of_a_deployed_module_is_its_own(ops: Operations, adapter: str) -> None:
    with deploying(ops) as define:
        target = {"module": "dspy.Predict", "signature": "question -> answer", "options": {"adapter": adapter}}
        define("adapted", target=target)
        call = Call(1, 1, "adapted")
        assert run(ops, "adapted", {"question": "what is up?"}, call=call).answer
        assert call.lm_calls == (2 if adapter == "two_step" else 1)


def test_an_option_of_a_deployed_module_that_is_wrong(ops: Operations) -> None:
    for options, path in (({"adapter": "yaml"}, "options.adapter"), ({"tool": []}, "options.tool")):
        target = {"module": "dspy.ReAct", "signature": "question -> answer", "options": options}
        assert refused(ops, "programs.load", {"target": target}).details["path"] == path
    target = {"module": "dspy.KNN", "signature": "question -> answer"}
    assert refused(ops, "programs.load", {"target": target}).code == "NOT_FOUND"


# DSPy's own module uses an argument that it has deprecated.
@pytest.mark.filterwarnings("ignore:The 'prefix' argument:DeprecationWarning")
def test_completions_of_a_deployed_comparison_are_checked(ops: Operations) -> None:
    with deploying(ops) as define:
        target = {"module": "dspy.MultiChainComparison", "signature": "question -> answer", "options": {"M": 2}}
        define("compare", target=target)
        error = refused(ops, "compare", {"question": "x", "completions": [{"answer": "a"}, {"answer": "b"}]})
        assert error.details["path"] == "inputs.completions[0]"
