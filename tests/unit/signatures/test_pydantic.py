"""pydantic models to signatures."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import Annotated as TypingAnnotated
from typing import Any
from typing import Literal as TypingLiteral
from uuid import UUID, uuid4

import pytest
from pydantic import AfterValidator, BaseModel, RootModel, computed_field
from pydantic import Field as PydanticField

from signatures import SignatureError, from_pydantic
from signatures.schema.pydantic_reader import read_pydantic
from signatures.schema.reader import read_json_schema
from signatures.text.parser import read


class Author(BaseModel):
    name: str = PydanticField(max_length=10)
    born: date | None = None


class Ticket(BaseModel):
    """Sort the ticket."""

    text: str = PydanticField(description="as it came", max_length=400, json_schema_extra={"input": True})
    tags: list[str] = PydanticField(default_factory=list, json_schema_extra={"input": True}, alias="labels")
    score: float = PydanticField(gt=0, le=1, multiple_of=0.5)
    due: TypingAnnotated[date | None, "a note"] = None
    author: Author
    count: TypingAnnotated[int, PydanticField(ge=0)] | None = None
    _private: int = 3

    @computed_field  # type: ignore[prop-decorator]
    @property
    def size(self) -> int:
        return len(self.text)


class Answer(BaseModel):
    team: TypingLiteral["a", "b"] = "a"


TICKET_INPUTS = "text: str[..400] 'as it came', tags: list[str] = []"
TICKET_OUTPUTS = (
    "score: float[0<..1, multiple_of=0.5], due: Annotated[date | None, 'a note'] = None, author: Author,"
    "count: int[0..] | None = None"
)


def test_the_marked_fields_of_one_model_are_the_inputs() -> None:
    found = from_pydantic(Ticket)
    assert found.spec == read(f"Sort the ticket.: {TICKET_INPUTS} -> {TICKET_OUTPUTS}", types={"Author": Author})
    assert found.__name__ == "Ticket"
    assert found.__module__ == __name__
    given = {"score": 0.5, "author": {"name": "x"}}
    assert found.validate_outputs(given)["author"] == Author(name="x")


def test_two_models_are_the_two_sides() -> None:
    found = from_pydantic(Answer, Author)
    assert found.spec == read("team: Literal['a', 'b'] = 'a' -> name: str[..10], born: date | None = None")
    assert from_pydantic(Ticket, Answer).instructions == "Sort the ticket."
    assert from_pydantic(Answer, Ticket, instructions="Other.").instructions == "Other."


def test_the_schema_of_a_model_says_the_same_as_its_fields() -> None:
    by_schema = read_json_schema(inputs=Author.model_json_schema(), outputs=Answer.model_json_schema())
    assert by_schema.validate_inputs({"name": "x", "born": "2000-01-01"}) == {"name": "x", "born": date(2000, 1, 1)}
    assert by_schema.outputs == read_pydantic(Author, Answer).outputs


class Changing(BaseModel):
    id: UUID = PydanticField(default_factory=uuid4)
    failing: int = PydanticField(default_factory=lambda: 1 // 0)
    wrong: int = None  # type: ignore[assignment]
    call: Callable[[], int]
    strict: TypingAnnotated[int, AfterValidator(abs)]
    depends: int = PydanticField(default_factory=lambda known: len(known))


def test_what_a_signature_would_lose_is_refused() -> None:
    with pytest.raises(SignatureError) as raised:
        from_pydantic(Answer, Changing)
    told = [problem.message for problem in raised.value.problems]
    fixes = [
        "the default of 'id' is another one each time; give a plain default, or none",
        "the default of 'failing' cannot be made: ZeroDivisionError",
        "the default of 'wrong' does not fit its type: the default must be an integer, got None",
        "'call'",
        "AfterValidator",
        "the default of 'depends' depends on other fields",
    ]
    assert len(told) == len(fixes)
    assert all(fix in message for fix, message in zip(fixes, told, strict=True)), told


NOT_MODELS = [None, 5, int, date, BaseModel, RootModel[int], Answer()]


@pytest.mark.parametrize("model", NOT_MODELS)
def test_what_is_no_model_with_fields_is_refused(model: Any) -> None:
    with pytest.raises(SignatureError, match="give pydantic models with fields"):
        read_pydantic(model, Answer)


def test_one_model_without_marks_is_refused_with_the_fix() -> None:
    with pytest.raises(SignatureError, match=r"'Answer' marks no field as an input; write Field\(json_schema_extra"):
        from_pydantic(Answer)


def test_a_model_that_is_not_complete_is_refused() -> None:
    class Later(BaseModel):
        other: NotThere  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(SignatureError, match=r"'Later' names a type that is not known yet"):
        read_pydantic(Later, Answer)
