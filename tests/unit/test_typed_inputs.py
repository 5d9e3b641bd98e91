"""What a program's inputs become in a worker: DSPy's own objects, or a refusal that names the place."""

from __future__ import annotations

import base64
from typing import Any

import dspy
import msgpack
import pydantic
import pytest

from bridge.protocol.errors import INVALID_REQUEST, BridgeError
from bridge.protocol.record import Record
from bridge.protocol.values import Prediction, decode_value, encode_value
from bridge.worker import dataset
from bridge.worker.dspy_signature import to_dspy
from bridge.worker.inputs import Inputs
from orchestrator.client.dataset import read_rows
from signatures.text.parser import read

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
PICTURE = "data:image/png;base64," + base64.b64encode(PNG).decode()


class Ticket(pydantic.BaseModel):
    team: str
    pictures: list[dspy.Image] = []


def checked(signature: str, given: dict[str, Any]) -> dict[str, Any]:
    return Inputs.of_signature(to_dspy(read(signature))).check(decode_value(encode_value(given)), "the test")


def refusal(signature: str, given: dict[str, Any]) -> BridgeError:
    with pytest.raises(BridgeError) as caught:
        checked(signature, given)
    assert caught.value.code == INVALID_REQUEST
    return caught.value


def forged(kind: str, fields: dict[str, Any]) -> Any:
    """Return what a message says is of a class, as a worker reads it."""
    return decode_value(msgpack.packb(msgpack.ExtType(13, msgpack.packb([kind, fields]))))


@pytest.mark.parametrize(
    "given",
    [
        dspy.Image(PICTURE), PICTURE, PNG, {"url": PICTURE}, Record("dspy.Image", {"url": PICTURE}),
        b"\xff\xd8\xff\xe0", b"GIF89a", b"RIFF\x00\x00\x00\x00WEBPVP8 ", "https://host.example/a.png", "gs://b/a.png",
    ],
    ids=["image", "data", "png", "mapping", "record", "jpeg", "gif", "webp", "url", "gs"],
)  # fmt: skip
@pytest.mark.parametrize("type_", ["dspy.Image", "dspy.Image | None", "list[dspy.Image]", "dict[str, dspy.Image]"])
def test_an_image_may_be_given_in_many_ways(type_: str, given: Any) -> None:
    wrap = {"l": lambda one: [one], "d": lambda one: {"k": one}}.get(type_[0] if "[" in type_ else "", lambda one: one)
    (found,) = checked(f"pictures: {type_} -> answer", {"pictures": wrap(given)}).values()
    while not isinstance(found, dspy.Image):
        (found,) = found.values() if isinstance(found, dict) else found
    assert found.url.startswith(("data:image/", "https://host.example/", "gs://b/"))
    if given is PNG:
        assert found == dspy.Image(PICTURE)


@pytest.mark.parametrize(
    "given",
    [
        "/etc/passwd", "picture.png", "file:///etc/passwd", "", b"not a picture", {"url": "/etc/passwd"},
        {"url": "https://host.example/a.png", "download": True}, {"url": b"GIF89a", "x": 1}, 7, None, [],
        "x" * 10_000_000,
    ],
    ids=["path", "name", "file url", "empty", "bytes", "mapping", "download", "more", "number", "none", "list", "long"],
)  # fmt: skip
def test_a_worker_opens_no_file_and_no_url_for_a_caller(given: Any) -> None:
    error = refusal("picture: dspy.Image -> answer", {"picture": given})
    assert error.details["path"] == "inputs.picture"
    assert len(error.message) < 700
    if isinstance(given, str | bytes):
        assert "dspy.Image.from_path" in error.message


@pytest.mark.parametrize(
    "data", ["notes.txt", "data:abc", "data:text/plain,abc", "data:;base64,YWJj", "data:a/b;base64,"]
)
def test_a_file_is_a_data_uri(data: str) -> None:
    for given in ({"file_data": data}, dspy.File(file_data=data), data):
        error = refusal("x: dspy.File -> answer", {"x": given})
        assert error.details["path"] == "inputs.x"
        assert "dspy.File.from_path" in error.message
    assert refusal("x -> answer", {"x": [dspy.File(file_data=data)]}).details["path"] == "inputs.x[0]"
    sound = {"file_data": "data:text/plain;charset=utf-8;base64,YWJj"}
    for given in (sound, dspy.File(**sound), sound["file_data"], dspy.File(file_id="f-1"), {"file_id": "f-1"}):
        assert isinstance(checked("x: dspy.File -> answer", {"x": given})["x"], dspy.File)


@pytest.mark.parametrize("signature", ["picture: dspy.Image -> answer", "picture -> answer", "picture: Any -> answer"])
def test_what_says_that_it_is_an_image_and_is_none_is_refused_anywhere(signature: str) -> None:
    fake = Record("dspy.Image", {"url": "/etc/passwd"})
    error = refusal(signature, {"picture": fake})
    assert error.details["path"] == "inputs.picture"
    assert "is no dspy.Image" in error.message
    assert refusal(signature, {"picture": {"a": [1, fake]}}).details["path"] == "inputs.picture.a[1]"
    assert "no such type" in refusal(signature, {"picture": Record("dspy.Hologram", {})}).message


@pytest.mark.parametrize(
    ("type_", "given", "made"),
    [
        ("dspy.Audio", b"abc", dspy.Audio(b"abc")),
        ("dspy.Audio", "data:audio/mp3;base64,YWJj", dspy.Audio(b"abc", audio_format="mp3")),
        ("dspy.File", b"abc", dspy.File(b"abc")),
        ("dspy.History", {"messages": [{"q": 1}]}, dspy.History(messages=[{"q": 1}])),
        ("dspy.History", dspy.History(messages=[{"q": PNG}]), dspy.History(messages=[{"q": PNG}])),
        ("dspy.Code", "x = 1", dspy.Code(code="x = 1")),
        ("dspy.Code['sql']", dspy.Code["sql"](code="select"), dspy.Code["sql"](code="select")),
        ("dspy.Reasoning", "so", dspy.Reasoning(content="so")),
        ("dspy.ToolCalls", [{"name": "a", "args": {}}], dspy.ToolCalls.from_dict_list([{"name": "a", "args": {}}])),
    ],
)
def test_dspys_other_types(type_: str, given: Any, made: Any) -> None:
    found = checked(f"x: {type_} -> answer", {"x": given})["x"]
    assert type(found).__name__ == type(made).__name__
    assert vars(found) == vars(made)


def test_a_model_may_come_from_a_class_that_only_the_caller_has() -> None:
    class Question(dspy.Signature):
        ticket: Ticket = dspy.InputField()
        answer: str = dspy.OutputField()

    inputs = Inputs.of_signature(Question)
    theirs = Record("model:their.module:Ticket", {"team": "tech", "pictures": [Record("dspy.Image", {"url": PICTURE})]})
    given = decode_value(encode_value({"ticket": theirs}))
    assert isinstance(given["ticket"], Record)
    assert inputs.check(given, "the test") == {"ticket": Ticket(team="tech", pictures=[dspy.Image(PICTURE)])}
    # Where any value goes, it stays a record.
    assert checked("ticket -> answer", given) == given


def test_predictions_become_dspys() -> None:
    sent = Prediction({"answer": "a", "items": 1}, completions={"answer": ["a", "b"], "items": [1, 2]}, usage={"m": 1})
    found = checked("before, more: list -> answer", {"before": sent, "more": [{"x": sent}]})
    for one in (found["before"], found["more"][0]["x"]):
        assert type(one) is dspy.Prediction
        assert one.toDict() == {"answer": "a", "items": 1}
        assert one.completions.answer == ["a", "b"]
        assert one.get_lm_usage() == {"m": 1}


# --- rows -----------------------------------------------------------------------------------------


def test_rows_for_an_optimizer_may_be_examples() -> None:
    given = [
        dspy.Example(q=1, hint=2, a=3).with_inputs("q", "hint"),
        dspy.Example(q=4, a=5),
        {"q": 6, "a": 7},
        Prediction({"q": 8, "a": 9}),
    ]
    rows = decode_value(encode_value(read_rows(iter(given), "trainset")))
    assert [type(row) for row in rows] == [dspy.Example, dspy.Example, dict, dict]
    found = dataset.read(rows, rows[:1], inputs=["q"], required=["q", "a"], seed=0)
    by_q = {one.q: one for one in found.train}
    assert by_q[1].inputs().toDict() == {"q": 1, "hint": 2}
    assert [by_q[q].inputs().toDict() for q in (4, 6, 8)] == [{"q": 4}, {"q": 6}, {"q": 8}]
    assert [by_q[q].labels().toDict() for q in (1, 4, 6, 8)] == [{"a": 3}, {"a": 5}, {"a": 7}, {"a": 9}]


def test_rows_that_are_none_are_told_by_number() -> None:
    with pytest.raises(BridgeError) as caught:
        dataset.read([dspy.Example(q=1), 7, {"q": 1, 3: 4}], None, inputs=["q"],
                     required=["q", "a"], seed=0)  # fmt: skip
    assert [text.split(" ")[0] for text in caught.value.details["problems"]] == [
        "trainset[0].a", "trainset[1]", "trainset[2]",
    ]  # fmt: skip


def test_a_forged_record_is_what_a_message_makes() -> None:
    assert forged("dspy.Image", {"url": "/etc/passwd"}) == Record("dspy.Image", {"url": "/etc/passwd"})
    assert forged("dspy.Image", {"url": PICTURE}) == dspy.Image(PICTURE)
