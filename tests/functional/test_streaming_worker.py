"""What a real worker streams: tokens of text fields, what it is doing, and the answer, which always comes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge.protocol.errors import CANCELLED, DEADLINE_EXCEEDED
from bridge.protocol.messages import FLAG_EVENTS, Credit, Event, Program, Reply, Request
from bridge.protocol.values import decode_value, encode_value
from tests.support.openai_server import Answer, OpenAIServer
from tests.support.worker_process import WorkerProcess, cancel, error_of, value_of

PROGRAMS = Path(__file__).parents[1] / "support" / "programs" / "streamed.py"
QUESTION = "why is the sky over the sea so blue today?"
LONG = "[[ ## answer ## ]]\n" + "word " * 400 + "\n\n[[ ## completed ## ]]"


@pytest.fixture(scope="module")
def server() -> Iterator[OpenAIServer]:
    """Answers a word each 20 ms, for eight seconds."""
    with OpenAIServer(Answer(LONG, latency_s=0.02)) as server:
        yield server


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory, server: OpenAIServer) -> Iterator[WorkerProcess]:
    lms = {
        "default": {"model": "offline/knn"},
        "slow": {"model": "openai/m", "api_base": server.url, "api_key": "secret key"},
    }
    more = {"lms": lms, "message_bytes": 1 << 20, "nesting": 64}
    with WorkerProcess(tmp_path_factory.mktemp("stream"), real=True, slots=8, **more) as process:
        process.boot()
        for name in ("TwoSteps", "TwoStepsAsync", "AtOnce", "Fans"):
            spec = encode_value({"name": name, "target": f"{PROGRAMS}:{name}"})
            process.send(Program(name=name, program_version=1, payload=spec, aliases=["live"]))
        yield process


def streamed(worker: WorkerProcess, operation: str, args: Any, *, window: int = 1000, **fields: Any) -> Request:
    return worker.request(operation, args, flags=FLAG_EVENTS, event_window=window, **fields)


def predict(module: str = "dspy.Predict", signature: str = "question -> answer", **options: Any) -> tuple[str, Any]:
    return module, {"signature": signature, "inputs": {"question": QUESTION}, "options": options}


def taken(worker: WorkerProcess, request: Request) -> list[Event]:
    """Return the events of a request that have come, and take them out."""
    found = [one for one in worker.others() if isinstance(one, Event) and one.epoch == request.epoch]
    for one in found:
        worker.expect(Event, epoch=one.epoch, sequence=one.sequence)
    return found


def finish(worker: WorkerProcess, request: Request) -> tuple[Any, list[Event]]:
    """Return the value of a request and all its events."""
    reply = worker.reply_to(request)
    events = taken(worker, request)
    assert [one.sequence for one in events] == list(range(1, len(events) + 1))
    return value_of(reply), events


def texts(events: list[Event]) -> dict[tuple[str, str], str]:
    """Return the text of each field of each predictor, put together."""
    found: dict[tuple[str, str], str] = {}
    for event in events:
        if event.kind == "token":
            fields = decode_value(event.payload or b"")
            place = fields["predictor"], fields["field"]
            found[place] = found.get(place, "") + fields["text"]
    return found


def statuses(events: list[Event]) -> list[str]:
    return [decode_value(one.payload or b"")["message"] for one in events if one.kind == "status"]


@pytest.mark.parametrize("adapter", ["chat", "json", "xml"])
def test_the_tokens_of_a_field_are_its_text(worker: WorkerProcess, adapter: str) -> None:
    operation, args = predict(signature="question -> answer, count: int, title", adapter=adapter)
    answer, events = finish(worker, streamed(worker, operation, args))
    assert texts(events) == {("self", "answer"): answer.answer, ("self", "title"): answer.title}
    assert len(events) > 4
    assert statuses(events) == []


def test_parts_of_dspys_own_modules_are_told_by_name(worker: WorkerProcess) -> None:
    answer, events = finish(worker, streamed(worker, *predict("dspy.ChainOfThought")))
    assert texts(events) == {("predict", "reasoning"): answer.reasoning, ("predict", "answer"): answer.answer}


@pytest.mark.parametrize("program", ["TwoSteps", "TwoStepsAsync"])
def test_predictors_with_fields_of_one_name_are_told_apart(worker: WorkerProcess, program: str) -> None:
    answer, events = finish(worker, streamed(worker, program, {"question": QUESTION}))
    assert texts(events) == {
        ("draft", "answer"): answer.drafted,
        ("polish.predict", "reasoning"): answer.reasoning * 2,
        ("polish.predict", "answer"): answer.answer * 2,
    }
    assert statuses(events) == ["Running draft…", "Running polish…", "Running polish…"]


def test_answers_that_come_at_once_are_each_whole(worker: WorkerProcess) -> None:
    answer, events = finish(worker, streamed(worker, "AtOnce", {"question": QUESTION}))
    (place, text), *others = texts(events).items()
    assert (place, others) == (("ask", "answer"), [])
    assert sorted(text) == sorted("".join(answer.answers))


def test_threads_that_cannot_stream_answer_all_the_same(worker: WorkerProcess) -> None:
    answer, events = finish(worker, streamed(worker, "Fans", {"question": QUESTION}))
    first, second = answer.answers
    assert first.answer
    assert second
    assert texts(events) == {}


@pytest.mark.parametrize("adapter", ["two_step", "baml"])
def test_adapters_that_cannot_stream_answer_all_the_same(worker: WorkerProcess, adapter: str) -> None:
    answer, events = finish(worker, streamed(worker, *predict(adapter=adapter)))
    assert answer.answer
    assert texts(events) == {}


def test_the_tools_of_an_agent_are_told(worker: WorkerProcess) -> None:
    args = {
        "signature": "question -> answer",
        "inputs": {"question": "what is the weather of the city Rome?"},
        "options": {"tools": [f"{PROGRAMS}:weather"], "max_iters": 3},
    }
    answer, events = finish(worker, streamed(worker, "dspy.ReAct", args))
    assert answer.trajectory["observation_0"].startswith("sunny")
    assert statuses(events) == ["Calling weather…"]
    assert texts(events)["extract.predict", "answer"] == answer.answer


def test_many_streams_at_once(worker: WorkerProcess) -> None:
    programs = ["TwoSteps", "TwoStepsAsync"] * 6
    requests = [streamed(worker, name, {"question": f"{QUESTION} {n}"}) for n, name in enumerate(programs)]
    answers = [value_of(worker.reply_to(request)) for request in requests]
    for request, answer in zip(requests, answers, strict=True):
        found = texts(taken(worker, request))
        assert (found["draft", "answer"], found["polish.predict", "answer"]) == (answer.drafted, answer.answer * 2)


@pytest.mark.parametrize("program", ["TwoSteps", "TwoStepsAsync"])
def test_no_more_events_come_than_the_reader_has_room_for(worker: WorkerProcess, program: str) -> None:
    request = streamed(worker, program, {"question": QUESTION}, window=3)
    first = [worker.event_of(request) for _ in range(3)]
    # Another request comes and goes meanwhile: what was to come of the first has had its time.
    worker.call("dspy.Predict", predict()[1])
    assert taken(worker, request) == []
    rest: list[Event] = []
    while not any(isinstance(one, Reply) and one.epoch == request.epoch for one in worker.others()):
        worker.send(Credit(request_id=request.request_id, epoch=request.epoch, events=1))
        worker.receive(0.05)
        rest += taken(worker, request)
    answer = value_of(worker.reply_to(request))
    rest += taken(worker, request)
    assert texts(first + rest)["polish.predict", "answer"] == answer.answer * 2
    whole = len(finish(worker, streamed(worker, program, {"question": QUESTION}))[1])
    assert len(first) + len(rest) < whole  # what waited was joined


@pytest.mark.parametrize("why", [CANCELLED, DEADLINE_EXCEEDED])
@pytest.mark.parametrize("operation", ["dspy.Predict", "TwoSteps", "TwoStepsAsync"])
def test_the_end_of_a_stream_is_the_end_of_its_model_request(
    worker: WorkerProcess, server: OpenAIServer, operation: str, why: str
) -> None:
    args = predict()[1] if operation == "dspy.Predict" else {"question": QUESTION}
    deadline_ms = 300.0 if why == DEADLINE_EXCEEDED else None
    request = streamed(worker, operation, args, lm="slow", deadline_ms=deadline_ms)
    while worker.event_of(request).kind != "token":
        pass
    if why == CANCELLED:
        worker.send(cancel(request))
    assert error_of(worker.reply_to(request)).code == why
    server.wait_idle(3.0)  # the server noticed that nobody reads
    taken(worker, request)
