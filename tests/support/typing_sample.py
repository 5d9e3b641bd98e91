"""What a type checker is to make of signatures. Read by a checker in a test, never imported.

`# error: CODE` marks a line that must be refused, `# reveals: TYPE` what `reveal_type` must tell; every other line must
pass.
"""

from __future__ import annotations

from typing import Literal, assert_type, reveal_type

import signatures
from signatures import MISSING, Field, Signature, SignatureError, ValidationError, parse, signature


class Triage(Signature):
    """Route a support ticket."""

    ticket: str = Field(input=True, max_length=4000)
    product: str = Field(input=True, default="")
    team: Literal["billing", "tech"] = Field(output=True)
    scores: list[float] = Field(output=True, default=[], description="one for each team")

    def words(self) -> int:
        return len(self.ticket.split())


class Urgent(Triage):
    minutes: int = Field(output=True, ge=0)


class Wrong(Signature):
    a: str = Field(input=True, maximum=3)  # error: call-arg
    b: int = Field(output=True, max_length="3")  # error: arg-type
    c: int = Field(output="yes")  # error: arg-type


# --- instances --------------------------------------------------------------------------------

one = Triage(ticket="lost", team="billing")
reveal_type(one.ticket)  # reveals: str
reveal_type(one.team)  # reveals: Literal['billing'] | Literal['tech']
reveal_type(one.scores)  # reveals: list[float]
reveal_type(one.words())  # reveals: int
reveal_type(one.as_dict())  # reveals: dict[str, Any]
reveal_type(Urgent(ticket="lost", team="tech", minutes=3).minutes)  # reveals: int

_ = one.tiket  # error: attr-defined
one.ticket = "found"  # error: misc
Triage(tiket="lost", team="billing")  # error: call-arg
Triage(ticket=3, team="billing")  # error: arg-type
Triage(ticket="lost", team="law")  # error: arg-type
Triage("lost", "billing")  # error: call-arg
Triage(product="x", team="tech")  # error: call-arg
Urgent(ticket="lost", team="tech", minutes="3")  # error: arg-type

# --- classes ----------------------------------------------------------------------------------

reveal_type(Triage.inputs)  # reveals: tuple[Field, ...]
reveal_type(Triage.fields)  # reveals: Mapping[str, Field]
reveal_type(Triage.instructions)  # reveals: str
reveal_type(Triage.outputs[0].type)  # reveals: Type
reveal_type(Triage.json_schema())  # reveals: dict[str, Any]
reveal_type(Triage.validate_inputs({"ticket": "lost"}))  # reveals: dict[str, Any]
reveal_type(Triage.append("why", Field(output=True), list[str]))  # reveals: type[Signature]
assert_type(Triage.with_instructions("Be brief.").delete("team"), type[Signature])

_ = Triage.input  # error: attr-defined
Triage.validate_inputs("lost")  # error: arg-type
Triage.with_updated_field("team", description=3)  # error: arg-type

# --- texts ------------------------------------------------------------------------------------

parsed = parse("a: int -> b: Mood", types={"Mood": Urgent}, instructions="Do it.")
reveal_type(parsed)  # reveals: type[Signature]
reveal_type(parsed.sha256)  # reveals: str
reveal_type(parsed(a=1).as_dict())  # reveals: dict[str, Any]
signatures.prase("a -> b")  # error: attr-defined
parse(3)  # error: arg-type
parse("a -> b", type={})  # error: call-arg


@signature("question -> answer")
def qa() -> None:
    """Answer briefly."""


reveal_type(qa)  # reveals: type[Signature]
reveal_type(qa.outputs)  # reveals: tuple[Field, ...]

try:
    qa.validate_inputs({})
except ValidationError as exc:
    reveal_type(exc.problems[0].message)  # reveals: str
except SignatureError as exc:
    reveal_type(exc.line)  # reveals: int
reveal_type(Triage.fields["team"].default is MISSING)  # reveals: bool
