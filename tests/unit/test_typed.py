"""DSPy's types and pydantic models come out as they went in: as themselves where they are loaded, else as records."""

from __future__ import annotations

import contextlib
import copy
import enum
import pickle
import random
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import dspy
import msgpack
import numpy
import pydantic
import pytest
from dspy.experimental import Citations, Document
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.protocol.errors import INVALID_REQUEST, BridgeError
from bridge.protocol.record import Example, Record
from bridge.protocol.typed import is_example
from bridge.protocol.values import Completions, Prediction, decode_value, encode_value
from bridge.worker.plain import to_plain

PICTURE = "data:image/png;base64,iVBORw0KGgo="


class Team(enum.Enum):
    TECH = "tech"
    SALES = "sales"


@dataclass
class Place:
    row: int
    seats: list[str]


class Person(pydantic.BaseModel):
    name: str
    born: datetime | None = None


class Boss(Person):
    reports: list[Person] = []


class Ticket(pydantic.BaseModel):
    """Everything that a field may be and that is no plain data."""

    team: Team = Team.TECH
    owner: Person
    tags: set[str] = set()
    by_team: dict[Team, tuple[int, Decimal]] = {}
    place: Place | None = None
    path: PurePosixPath = PurePosixPath("a/b")
    link: pydantic.AnyUrl | None = None
    picture: dspy.Image | None = None
    short: str = pydantic.Field(default="", alias="theShortText")

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def loud(self) -> str:
        return self.owner.name.upper()

    @cached_property
    def kept(self) -> str:
        return "kept"


class Numbers(pydantic.RootModel[list[int]]):
    pass


class Open(pydantic.BaseModel, extra="allow"):
    x: int


class Strict(pydantic.BaseModel, strict=True, extra="forbid", frozen=True):
    team: Team
    at: datetime


# --- there and back -------------------------------------------------------------------------------

TEXTS = st.text(max_size=20)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS | st.binary(max_size=9) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.dictionaries(st.text("abcdefg_", min_size=1, max_size=6), PLAIN, max_size=4)
DATA = st.binary(max_size=30)
IMAGES = st.one_of(
    DATA.map(lambda data: dspy.Image(f"data:image/png;base64,{data.hex()}")),
    st.text("abc/.?=", max_size=10).map(lambda path: dspy.Image(f"https://host.example/{path}")),
)
PERSONS = st.builds(Person, name=TEXTS, born=st.none() | st.datetimes())
CALLS = st.lists(st.fixed_dictionaries({"name": TEXTS, "args": FIELDS, "id": st.none() | TEXTS}), max_size=3)
RESULTS = st.lists(st.fixed_dictionaries({"name": TEXTS, "value": PLAIN, "is_error": st.booleans()}), max_size=3)
CITED = st.lists(
    st.fixed_dictionaries({"cited_text": TEXTS, "document_index": st.integers(0), "start_char_index": st.integers(0),
                           "end_char_index": st.integers(0)}), max_size=3)  # fmt: skip
TICKETS = st.builds(
    Ticket, team=st.sampled_from(Team), owner=PERSONS | st.builds(Boss, name=TEXTS, reports=st.lists(PERSONS)),
    tags=st.sets(TEXTS, max_size=3), picture=st.none() | IMAGES, theShortText=TEXTS,
    by_team=st.dictionaries(st.sampled_from(Team), st.tuples(st.integers(), st.decimals(-99, 99))),
    place=st.none() | st.builds(Place, row=st.integers(), seats=st.lists(TEXTS, max_size=2)),
    link=st.just(pydantic.AnyUrl("https://a.example/b?c=d")),
)  # fmt: skip

TYPES: dict[str, st.SearchStrategy[Any]] = {
    "image": IMAGES,
    "audio": DATA.map(lambda data: dspy.Audio(data, audio_format="mp3")),
    "file": st.builds(dspy.File.from_bytes, DATA, TEXTS),
    "history": st.lists(FIELDS | st.dictionaries(TEXTS, IMAGES, max_size=2)).map(lambda m: dspy.History(messages=m)),
    "code": TEXTS.map(lambda text: dspy.Code(code=text)),
    "reasoning": TEXTS.map(lambda text: dspy.Reasoning(content=text)),
    "tool calls": st.tuples(CALLS, PLAIN).map(lambda p: dspy.ToolCalls(tool_calls=p[0], tool_call_results=p[1])),
    "tool call results": RESULTS.map(lambda results: dspy.ToolCallResults(tool_call_results=results)),
    "document": st.builds(Document, data=TEXTS, title=st.none() | TEXTS),
    "citations": CITED.map(Citations.from_dict_list),
    "model": TICKETS,
    "root model": st.lists(st.integers()).map(Numbers),
    "open model": FIELDS.map(lambda fields: Open(**{"x": 1, **{f"_{k}": v for k, v in fields.items()}})),
    "strict model": st.builds(Strict, team=st.sampled_from(Team), at=st.datetimes()),
    "example": st.builds(lambda fields, some: dspy.Example(fields).with_inputs(*sorted(fields)[:some]), FIELDS,
                         st.integers(0, 3)) | FIELDS.map(dspy.Example),
}  # fmt: skip


@pytest.mark.parametrize("name", TYPES)
def test_a_typed_value_arrives_equal(name: str) -> None:
    @settings(max_examples=60, deadline=None)
    @given(TYPES[name])
    def arrives(value: Any) -> None:
        data = encode_value({"v": [value]})
        got = decode_value(data)["v"][0]
        assert type(got) is type(value)
        assert got == value
        assert encode_value({"v": [got]}) == data or isinstance(value, Ticket)  # a set has no order
        # As a result of a program too.
        assert decode_value(encode_value(to_plain((value,)))) == (value,)
        if name == "example":
            assert got._input_keys == value._input_keys

    arrives()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.fixed_dictionaries({"answer": PLAIN, "score": st.floats(allow_nan=False)}), min_size=1, max_size=3),
    st.none() | st.dictionaries(TEXTS, st.dictionaries(TEXTS, st.integers()), min_size=1, max_size=2),
)
def test_a_prediction_arrives_with_all_of_dspys(rows: list[dict[str, Any]], usage: Any) -> None:
    sent = dspy.Prediction.from_completions(rows)
    sent.set_lm_usage(usage)
    for one in (decode_value(encode_value(sent)), decode_value(encode_value(to_plain(sent)))):
        assert type(one) is Prediction
        assert one.toDict() == rows[0]
        assert one.completions.answer == [row["answer"] for row in rows]
        assert [dict(each) for each in one.completions] == rows
        assert one.usage == one.get_lm_usage() == usage
        assert float(one) == float(sent)
        for twin in (copy.deepcopy(one), pickle.loads(pickle.dumps(one)), decode_value(encode_value(one))):
            assert twin == one
            assert twin.completions == one.completions
            assert twin.usage == usage


def test_a_prediction_without_extras_takes_no_more_bytes() -> None:
    plain = msgpack.packb(msgpack.ExtType(12, msgpack.packb({"answer": "4"})))
    assert encode_value(Prediction({"answer": "4"})) == plain
    assert encode_value(dspy.Prediction.from_completions([{"answer": "4"}])) == plain


def test_fields_come_before_what_a_prediction_has_besides() -> None:
    shadowing = Prediction({"usage": "by hand", "completions": 3}, usage={"m": 1})
    assert (shadowing.usage, shadowing.completions) == ("by hand", 3)
    assert shadowing.get_lm_usage() == {"m": 1}
    assert decode_value(encode_value(shadowing)).get_lm_usage() == {"m": 1}
    assert Prediction({"a": 1}).completions == Completions({"a": [1]})
    assert Prediction({"a": 1}).usage is None
    with pytest.raises(IndexError):
        _ = Prediction({"a": 1}).completions[1]


def test_a_score_counts_as_a_number() -> None:
    low, high = Prediction({"score": 1}), Prediction({"score": 3.0})
    assert (low < high, low <= 1, high > low, high >= 4, sum([low, high]), high / 2, 3 / high) == (
        True, True, True, False, 4.0, 1.5, 1.0,
    )  # fmt: skip
    with pytest.raises(ValueError, match="no field 'score'"):
        float(Prediction({"a": 1}))


# --- where the class is not loaded ----------------------------------------------------------------

SAMPLES: list[Any] = [
    dspy.Image(PICTURE), dspy.Audio(b"abc", audio_format="wav"), dspy.File.from_bytes(b"abc", "a.txt"),
    dspy.History(messages=[{"q": 1, "picture": dspy.Image(PICTURE)}]), dspy.Code(code="1"),
    dspy.Reasoning(content="so"), dspy.ToolCalls.from_dict_list([{"name": "s", "args": {"q": 1}}]),
    dspy.ToolCallResults(tool_call_results=[{"name": "s", "value": (1, 2)}]), Document(data="d"),
    Ticket(owner=Boss(name="a", reports=[Person(name="b")]), team=Team.SALES), Numbers([1]), Open(x=1, y=2),
    dspy.Example(q=1, a=2).with_inputs("q"), dspy.Example(q=1),
    dspy.Prediction.from_completions([{"a": dspy.Image(PICTURE)}, {"a": None}]),
    {Strict(team=Team.TECH, at=datetime.min)},
]  # fmt: skip

ELSEWHERE = """
import sys
from bridge.protocol.values import decode_value, encode_value
for line in sys.stdin:
    data = bytes.fromhex(line)
    value = decode_value(data)
    print(repr(value), encode_value(value) == data)
sys.exit(bool({"dspy", "pydantic", "numpy"} & set(sys.modules)))
"""


def test_a_process_without_dspy_passes_on_the_same_bytes_and_imports_nothing() -> None:
    lines = "\n".join(encode_value(sample).hex() for sample in SAMPLES)
    command = [sys.executable, "-c", ELSEWHERE]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert len(told) == len(SAMPLES)
    assert all(line.endswith(" True") for line in told)
    assert told[0].startswith("<dspy.Image url='data:image/png")
    assert told[9].startswith(f"<model:{__name__}:Ticket team='sales', owner=<model:{__name__}:Boss name='a'")


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Any]:
    """Decode as a process would that has not loaded this module and DSPy."""

    def decoded(value: Any) -> Any:
        data = encode_value(value)
        with monkeypatch.context() as patch:
            patch.delitem(sys.modules, __name__)
            patch.delitem(sys.modules, "dspy")
            return decode_value(data)

    return decoded


def test_a_record_is_a_mapping_with_attributes(unloaded: Callable[[Any], Any]) -> None:
    sent = Ticket(owner=Boss(name="a", reports=[Person(name="b")]), tags={"x"}, place=Place(1, ["2"]))
    record = unloaded(sent)
    assert type(record) is Record
    assert record.kind == f"model:{__name__}:Ticket"
    assert record.owner.reports[0].name == record["owner"]["reports"][0]["name"] == "b"
    assert record.team == "tech"
    assert record.place == {"row": 1, "seats": ["2"]}
    assert record.toDict()["owner"] == {"name": "a", "born": None, "reports": [{"name": "b", "born": None}]}
    assert "loud" not in record
    assert "kept" not in record
    assert "team" in dir(record)
    assert record.to(Ticket).model_dump() == sent.model_dump()
    for twin in (copy.deepcopy(record), pickle.loads(pickle.dumps(record)), unloaded(record)):
        assert twin == record
        assert hash(twin) == hash(record)
    assert record != Record("model:x:Ticket", record)
    assert Record("dspy.X", {"kind": "a field"}).kind == "a field"
    assert record != dict(record)
    with pytest.raises(AttributeError, match="fields: team, owner"):
        _ = record.nothing
    with pytest.raises(AttributeError):
        record.team = "sales"
    # DSPy writes it into a prompt as its fields.
    assert pydantic.TypeAdapter(Record).dump_python(record.owner.reports[0], mode="json") == {"name": "b", "born": None}


def test_a_record_refuses_a_class_that_is_not_its_own(unloaded: Callable[[Any], Any]) -> None:
    with pytest.raises(pydantic.ValidationError):
        unloaded(dspy.Image(PICTURE)).to(Person)
    assert unloaded(dspy.Image(PICTURE)).to(dspy.Image) == dspy.Image(PICTURE)


def test_an_example_without_dspy(unloaded: Callable[[Any], Any]) -> None:
    example = unloaded(dspy.Example(q=1, a=2, base=3).with_inputs("q"))
    assert type(example) is Example
    assert (example.q, example["a"], example.input_keys) == (1, 2, {"q"})
    assert dict(example.inputs()) == {"q": 1}
    assert dict(example.labels()) == {"a": 2}
    assert example.to(dspy.Example).inputs().toDict() == {"q": 1}
    assert pickle.loads(pickle.dumps(example)) == example
    assert example != example.with_inputs("a")
    assert Example({"q": 1}) != Record("dspy.Example", {"q": 1})
    assert Record("dspy.Example", {"q": 1}) != Example({"q": 1})
    unsaid = Example({"q": 1})
    assert decode_value(encode_value(unsaid.with_inputs("q"))).inputs().toDict() == {"q": 1}
    with pytest.raises(ValueError, match="with_inputs"):
        unsaid.inputs()
    assert [is_example(one) for one in (example, dspy.Example(q=1), dspy.Prediction(q=1), {"q": 1})] == [
        True, True, False, False,
    ]  # fmt: skip


def test_classes_of_one_call_are_records() -> None:
    class Local(pydantic.BaseModel):
        x: int

    got = decode_value(encode_value(Local(x=1)))
    assert type(got) is Record
    assert got.kind.endswith("<locals>.Local")
    assert got.x == 1


def test_code_of_a_language_arrives_as_code() -> None:
    assert decode_value(encode_value(dspy.Code["sql"](code="select"))) == dspy.Code(code="select")


# --- what cannot travel ---------------------------------------------------------------------------


class Hostile:
    def __getattribute__(self, name: str) -> Any:
        raise SystemError(f"{name} was looked at")


class Trap(pydantic.BaseModel):
    x: Any = None

    def __getattr__(self, name: str) -> Any:
        raise SystemError(f"{name} was looked at")

    def model_dump(self, **_: Any) -> Any:
        raise SystemError("model_dump was called")


def cyclic_model() -> Open:
    value = Open(x=1)
    value.inner = [value]  # type: ignore[attr-defined]
    return value


def deep_model(depth: int) -> Any:
    value: Any = None
    for _ in range(depth):
        value = Trap(x=value)
    return value


@pytest.mark.parametrize(
    ("value", "path", "text"),
    [
        ({"a": [Open(x=1, y={"z": object()})]}, "a[0].y.z", "it is a object"),
        ({"t": dspy.Tool(len, name="n", args={}, arg_types={})}, "t", "holds a function"),
        ({"s": Open(x=1, key=pydantic.SecretStr("k"))}, "s.key", "SecretStr"),
        ({"e": dspy.Example(f=len)}, "e.f", "plain data"),
        ({"p": dspy.Prediction.from_completions([{"a": 1}, {"a": len}])}, "p.completions.a[1]", "plain data"),
        ({"h": [Hostile()]}, "h[0]", "SystemError"),
        (cyclic_model(), None, "contains itself"),
        ({"d": deep_model(129)}, None, "nested too deep"),
    ],
    ids=["inside", "tool", "secret", "example", "completions", "hostile", "cycle", "depth"],
)
def test_what_a_typed_value_holds_is_named(value: Any, path: str | None, text: str) -> None:
    with pytest.raises(BridgeError, match=text) as caught:
        encode_value(value)
    assert caught.value.code == INVALID_REQUEST
    if path is not None:
        assert caught.value.details["path"] == path


def test_no_code_of_a_model_is_run() -> None:
    assert decode_value(encode_value(Trap(x=[1]))) == Trap(x=[1])
    assert decode_value(encode_value(deep_model(60)))


def test_wide_cycles_end_at_once() -> None:
    value: list[Any] = []
    value.append([value, Trap(x=value), value])
    with pytest.raises(BridgeError, match="contains itself"):
        encode_value(to_plain({"v": value}))


# --- hostile messages -----------------------------------------------------------------------------


def typed_bytes(*items: Any) -> bytes:
    data: bytes = msgpack.packb(msgpack.ExtType(13, msgpack.packb(list(items), use_bin_type=True)))
    return data


class Lazy(types.ModuleType):
    def __getattribute__(self, name: str) -> Any:
        raise SystemError(f"{name} was looked at")


@pytest.mark.parametrize(
    "kind",
    [
        "dspy.Predict", "dspy.LM", "dspy.Tool", "dspy.settings", "dspy.cache", "dspy.", "dspy.Nothing", "dspy.a.b",
        "model:", "model::", "model:os:environ", "model:os:system", "model:builtins:int", "model:pydantic:BaseModel",
        "model:pydantic.main:BaseModel", "model:this:s", "model:lazy:Thing", f"model:{__name__}:Person.model_fields",
        f"model:{__name__}:numpy.ndarray", "model:dspy.adapters.types.image:Image", "model:\ud7ff:\x00",
    ],
)  # fmt: skip
def test_a_message_makes_nothing_but_models(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lazy", Lazy("lazy"))
    before = set(sys.modules)
    got = decode_value(typed_bytes(kind, {"name": "x", "url": "https://a.example", "func": "len"}))
    assert type(got) is Record
    assert got.kind == kind
    assert set(sys.modules) == before


@pytest.mark.parametrize(
    "fields",
    [
        {"url": "/etc/passwd"}, {"url": "file:///etc/passwd"}, {"url": "https://a.example", "download": True},
        {"url": b"GIF89a"}, {"url": 1}, {}, {"source": PICTURE}, {"url": {"url": "relative.png"}},
    ],
    ids=lambda fields: repr(fields)[:30],
)  # fmt: skip
def test_an_image_of_no_data_stays_a_record(fields: dict[str, Any]) -> None:
    got = decode_value(typed_bytes("dspy.Image", fields))
    assert type(got) is Record
    assert dict(got) == fields


@pytest.mark.parametrize(
    "items",
    [
        [], ["dspy.Image"], ["dspy.Image", []], ["dspy.Image", {1: 2}], [1, {}], ["Image", {}], ["", {}],
        ["dspy.Example", {"a": 1}, "a"], ["dspy.Example", {"a": 1}, [1]], ["dspy.Example", None],
        ["model:" + "x" * 600, {}],
    ],
    ids=lambda items: repr(items)[:40],
)  # fmt: skip
def test_damaged_typed_values_are_refused(items: list[Any]) -> None:
    with pytest.raises(BridgeError, match="cannot be read") as caught:
        decode_value(typed_bytes(*items))
    assert caught.value.code == INVALID_REQUEST


@pytest.mark.parametrize(
    "items",
    [
        [{"a": 1}], [{"a": 1}, []], [[], {}], [{"a": 1}, {"completions": {"a": 1}}], [{"a": 1}, {"usage": 1}],
        [{1: 1}, {}], [{"a": 1}, {"completions": {1: []}}],
    ],
    ids=repr,
)  # fmt: skip
def test_damaged_predictions_are_refused(items: list[Any]) -> None:
    with pytest.raises(BridgeError, match="cannot be read"):
        decode_value(msgpack.packb(msgpack.ExtType(12, msgpack.packb(items))))


KINDS = st.sampled_from([
    "dspy.Image", "dspy.Audio", "dspy.File", "dspy.History", "dspy.Code", "dspy.ToolCalls", "dspy.ToolCallResults",
    "dspy.Reasoning", "dspy.Example", "dspy.Tool", f"model:{__name__}:Ticket", f"model:{__name__}:Numbers",
    f"model:{__name__}:Trap", "model:dspy.adapters.types.tool:ToolCalls.ToolCall",
])  # fmt: skip
NAMES = st.sampled_from(
    ["url", "data", "audio_format", "file_data", "messages", "code", "tool_calls", "name", "root", "x"]
)


def outcome(data: bytes) -> Any:
    """Return the value, or the typed error; anything else fails the test."""
    try:
        return decode_value(data)
    except BridgeError as error:
        return error


@settings(max_examples=200, deadline=None)
@given(KINDS | TEXTS, st.dictionaries(NAMES | TEXTS, PLAIN, max_size=4), PLAIN)
def test_random_typed_values_are_read_or_refused(kind: str, fields: dict[str, Any], keys: Any) -> None:
    inner = [kind, fields] if keys is None else [kind, fields, keys]
    data = encode_value(inner)
    got = outcome(msgpack.packb(msgpack.ExtType(13, data)))
    if not isinstance(got, BridgeError):
        assert isinstance(got, Record | pydantic.BaseModel | dspy.Example)
        encode_value(got)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(SAMPLES) - 1), st.randoms(use_true_random=False))
def test_damaged_typed_values_never_raise_anything_else(number: int, rng: random.Random) -> None:
    data = bytearray(encode_value(SAMPLES[number]))
    for _ in range(rng.randint(1, 3)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    for damaged in (bytes(data), bytes(data[: rng.randrange(len(data))])):
        outcome(damaged)


def test_nested_typed_values_are_bounded() -> None:
    value: Any = 1
    for _ in range(2000):
        value = msgpack.ExtType(13, msgpack.packb(["model:a:B", {"x": value}]))
    with pytest.raises(BridgeError):
        decode_value(msgpack.packb(value))
    with contextlib.suppress(RecursionError):
        assert decode_value(encode_value(deep_model(128)))


def test_an_array_within_a_model_arrives() -> None:
    got = decode_value(encode_value(Open(x=1, array=numpy.arange(5.0))))
    assert numpy.array_equal(got.array, numpy.arange(5.0))


class Settings(pydantic.BaseModel):
    key: str = pydantic.Field(default_factory=lambda: "of this process")


class Holder(pydantic.BaseModel):
    settings: Settings = Settings()
    all: list[Settings] = []
    place: Place | None = None


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("Settings", {}), ("Settings", {"more": 1}), ("Holder", {"settings": {}, "all": [], "place": None}),
        ("Holder", {"settings": {"key": "k"}, "all": [{}], "place": None}), ("Holder", {}),
        ("Person", {"name": "x"}), ("Person", {"name": "x", "born": 0}),
    ],
    ids=str,
)  # fmt: skip
def test_a_model_never_has_what_was_not_sent(kind: str, fields: dict[str, Any]) -> None:
    got = decode_value(typed_bytes(f"model:{__name__}:{kind}", fields))
    assert type(got) is Record
    assert dict(got) == fields
    whole = Holder(settings=Settings(key="k"), all=[Settings()], place=Place(1, ["a"]))
    assert decode_value(encode_value(whole)) == whole
