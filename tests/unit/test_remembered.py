"""What is remembered of DSPy's prompts is what DSPy would have written."""

from __future__ import annotations

from typing import Any, Literal

import dspy  # type: ignore[import-untyped]
import pytest
from dspy.adapters import utils  # type: ignore[import-untyped]
from dspy.adapters.base import Adapter  # type: ignore[import-untyped]
from pydantic import BaseModel, TypeAdapter

from bridge.worker import remembered

ORIGINAL = getattr(Adapter.format_system_message, "__wrapped__", Adapter.format_system_message)


class Town(BaseModel):
    name: str
    size: int = 0


class Described(dspy.Signature):  # type: ignore[misc]
    """Tell the town."""

    text: str = dspy.InputField(desc="what was said")
    town: Town = dspy.OutputField()
    mood: Literal["good", "bad"] = dspy.OutputField(desc="of the text")


SIGNATURES = ["question -> answer", "a: int, b: list[str] -> c: float, d: dict[str, int]", Described]
ADAPTERS = [dspy.ChatAdapter, dspy.JSONAdapter, dspy.XMLAdapter]


class Counted:
    """The original, which counts how often it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, adapter: Any, signature: Any) -> str:
        self.calls += 1
        return str(ORIGINAL(adapter, signature))


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("signature", SIGNATURES, ids=lambda one: getattr(one, "__name__", "text"))
def test_a_prompts_head_is_made_once_and_is_the_same(adapter: Any, signature: Any) -> None:
    made = dspy.Signature(signature) if isinstance(signature, str) else signature
    original = Counted()
    head = remembered.heads(original)
    for _ in range(3):
        assert head(adapter(), made) == ORIGINAL(adapter(), made)
    assert original.calls == 1


def test_what_is_changed_in_its_place_is_seen() -> None:
    original = Counted()
    head = remembered.heads(original)
    signature = dspy.Signature("question -> answer")
    first = head(dspy.ChatAdapter(), signature)
    signature.instructions = "Answer in one word."
    assert "Answer in one word." in head(dspy.ChatAdapter(), signature)
    signature.model_fields["answer"].json_schema_extra["desc"] = "a colour"
    assert "a colour" in head(dspy.ChatAdapter(), signature)
    assert head(dspy.ChatAdapter(), signature) == ORIGINAL(dspy.ChatAdapter(), signature) != first
    assert original.calls == 3
    assert head(dspy.ChatAdapter(), signature.with_instructions("Say no.")) != head(dspy.ChatAdapter(), signature)


def test_an_adapter_of_a_users_own_is_asked_each_time() -> None:
    class Mine(dspy.ChatAdapter):  # type: ignore[misc]
        pass

    original = Counted()
    head = remembered.heads(original)
    signature = dspy.Signature("question -> answer")
    assert head(Mine(), signature) == head(Mine(), signature)
    assert original.calls == 2


def test_plain_types_share_an_adapter_and_others_do_not() -> None:
    adapters = remembered.type_adapters(TypeAdapter)
    assert adapters(str) is adapters(str)
    assert adapters(list) is not adapters(list[int])
    assert adapters(Town) is not adapters(Town)
    assert adapters(int).dump_python(3, mode="json", fallback=str) == 3


def test_dspy_remembers_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Adapter, "format_system_message", ORIGINAL)
    monkeypatch.setattr(utils, "TypeAdapter", TypeAdapter)
    remembered.remember()
    head, adapters = Adapter.format_system_message, utils.TypeAdapter
    remembered.remember()
    assert (head, adapters) == (Adapter.format_system_message, utils.TypeAdapter)
    assert head is not ORIGINAL
    values: list[Any] = ["text", 1, 1.5, True, None, ["a", 1], {"a": [1]}, (1, 2), Town(name="Rome")]
    assert [utils.serialize_for_json(value) for value in values] == [
        TypeAdapter(type(value)).dump_python(value, mode="json", fallback=str) for value in values
    ]
