"""The conversation of a session as the `dspy.History` of a program or a module, on real DSPy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy  # type: ignore[import-untyped]
import pytest

from bridge.protocol.errors import BridgeError, decode_error
from bridge.protocol.messages import OK, InSession, Request
from bridge.protocol.sessions import cut_tail, pack_snapshot, unpack_change
from bridge.protocol.values import decode_value, encode_value
from bridge.worker.attempt import Runner
from bridge.worker.call import Call, current_call
from bridge.worker.operations import Operations
from bridge.worker.slots import PAGE_BYTES, StartedSlots
from tests.support.operations import SPEC, built, deploying

PROGRAM = """
import dspy

class Teller(dspy.Module):
    def forward(self, question, history: dspy.History):
        return dspy.Prediction(answer=f"{question}!", heard=[dict(one) for one in history.messages])
"""
TYPED = "question: str, history: dspy.History -> answer: str"


class Talk:
    """One session of a worker, driven as the coordinator does it: each attempt brings the snapshot."""

    def __init__(self, ops: Operations, *, session: str = "anna\0s1") -> None:
        fd = os.memfd_create("slots")
        os.ftruncate(fd, PAGE_BYTES)
        self.runner = Runner(ops, SPEC, StartedSlots(fd))
        os.close(fd)
        self.session = session
        self.seq = 0
        self.turns: list[bytes] = []

    def say(self, operation: str, args: Any) -> Any:
        tail = pack_snapshot(b"", self.turns)
        request = Request(
            operation=operation, session=self.session, payload=encode_value(args) + tail,
            in_session=InSession(1, self.seq, True, len(tail)),
        )  # fmt: skip
        call = Call(1, 1, operation)
        request = self.runner.sessions.enter(request, call)
        assert call.visit is not None
        token = current_call.set(call)
        try:
            reply = self.runner.sessions.answered(call.visit, self.runner.run(request, call))
        finally:
            current_call.reset(token)
        assert reply.session is not None
        payload, changed = cut_tail(reply.payload or b"", reply.session.tail)
        self.seq = reply.session.seq
        _, turn = unpack_change(changed)
        assert turn is not None
        self.turns.append(turn)
        if reply.status != OK:
            raise decode_error(payload)
        return decode_value(payload)


@pytest.fixture(scope="module")
def ops() -> Iterator[Operations]:
    with built() as made:
        yield made


@pytest.fixture
def program(ops: Operations, tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "telling.py"
    path.write_text(PROGRAM)
    with deploying(ops) as deploy:
        deploy("teller", target=f"{path}:Teller")
        yield "teller"


def test_a_program_hears_what_was_said_before(ops: Operations, program: str) -> None:
    talk = Talk(ops)
    assert talk.say(program, {"question": "one"}).heard == []
    assert talk.say(program, {"question": "two"}).heard == [{"question": "one", "answer": "one!", "heard": []}]
    heard = talk.say(program, {"question": "three"}).heard
    assert [(one["question"], one["answer"]) for one in heard] == [("one", "one!"), ("two", "two!")]


def test_a_history_that_is_given_is_taken(ops: Operations, program: str) -> None:
    talk = Talk(ops)
    talk.say(program, {"question": "one"})
    given = talk.say(program, {"question": "two", "history": dspy.History(messages=[{"question": "zero"}])})
    assert given.heard == [{"question": "zero"}]
    heard = talk.say(program, {"question": "three"}).heard
    assert [one["question"] for one in heard] == ["one", "two"]
    assert all("history" not in one for one in heard)


def test_what_failed_and_what_others_said_is_not_heard(ops: Operations, program: str) -> None:
    talk = Talk(ops)
    with pytest.raises(BridgeError):
        talk.say(program, {"answer": "no question"})
    talk.say("echo", {"question": "to nobody"})
    assert talk.say(program, {"question": "one"}).heard == []
    assert [one["question"] for one in talk.say(program, {"question": "two"}).heard] == ["one"]


def test_without_a_session_a_history_is_asked_for(ops: Operations, program: str) -> None:
    operation = ops.find(program)
    assert operation is not None
    with pytest.raises(BridgeError, match="history is missing"):
        operation({"question": "one"}, Call(1, 1, program))


def test_a_module_hears_those_of_its_signature(ops: Operations, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Any] = []
    forward = dspy.Predict.forward

    def listening(self: Any, **inputs: Any) -> Any:
        heard.append(inputs["history"].messages)
        return forward(self, **inputs)

    monkeypatch.setattr(dspy.Predict, "forward", listening)
    talk = Talk(ops)
    other = "question: str, history: dspy.History -> colour: str"
    talk.say("dspy.Predict", {"signature": TYPED, "inputs": {"question": "one"}})
    talk.say("dspy.Predict", {"signature": other, "inputs": {"question": "red"}})
    talk.say("dspy.Predict", {"signature": TYPED, "inputs": {"question": "two", "history": {"messages": []}}})
    talk.say("dspy.Predict", {"signature": TYPED, "inputs": {"question": "three"}})
    assert [[message["question"] for message in said] for said in heard] == [[], [], [], ["one", "two"]]
    assert [set(message) for message in heard[3]] == [{"question", "answer"}] * 2


def test_chain_of_thought_talks_to_a_model_in_turns(ops: Operations, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts: list[Any] = []
    wrapped = dspy.ChatAdapter.format

    def seen(self: Any, *args: Any, **kwargs: Any) -> Any:
        prompts.append(wrapped(self, *args, **kwargs))
        return prompts[-1]

    monkeypatch.setattr(dspy.ChatAdapter, "format", seen)
    talk = Talk(ops)
    for question in ("one", "two"):
        talk.say("dspy.ChainOfThought", {"signature": TYPED, "inputs": {"question": question}})
    assert [len(prompt) for prompt in prompts] == [2, 4]
    assert [message["role"] for message in prompts[1]] == ["system", "user", "assistant", "user"]
