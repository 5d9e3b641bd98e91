"""JSON Schema to a signature: what `schema.json_schema` writes, and what others write.

Only what a signature can hold is read. Keywords that would change what is valid and are not understood are refused, all
of them at once, each with its JSON pointer; annotations and keywords that JSON Schema does not know are ignored, as are
formats that are not ours. A reference is followed only to `#/$defs/NAME` and `#/definitions/NAME`, and nothing is ever
fetched. Some is read more narrowly, or more widely, than it is written:

* an object with properties is a record, which has no other members, also without `additionalProperties: false`;
* a property that is not required and has no default, or null for one, may be None, which is its default;
* a property with a default need not be given, also if it is required;
* `oneOf` is a union: that a value fits one alone is not checked; `uri` is a URL of http or https;
* a list with `prefixItems` has all of them.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from signatures.errors import SignatureError
from signatures.model import Spec
from signatures.schema.fields import Fields
from signatures.schema.parts import Part, kind
from signatures.schema.pydantic_reader import read_pydantic

if TYPE_CHECKING:
    from pydantic import BaseModel

    from signatures.declare import Signature


def from_json_schema(
    schema: dict[str, Any] | None = None,
    *,
    inputs: dict[str, Any] | None = None,
    outputs: dict[str, Any] | None = None,
    instructions: str = "",
) -> type[Signature]:
    """Return the signature that a JSON Schema describes, as `read_json_schema` does. Its title is the class's name."""
    spec = read_json_schema(schema, inputs=inputs, outputs=outputs, instructions=instructions)
    return _class(spec, (schema or {}).get("title"))


def from_pydantic(
    inputs: type[BaseModel], outputs: type[BaseModel] | None = None, *, instructions: str | None = None
) -> type[Signature]:
    """Return the signature that pydantic models describe, as `read_pydantic` does."""
    return _class(read_pydantic(inputs, outputs, instructions=instructions), (outputs or inputs).__name__)


def _class(spec: Spec, name: object) -> type[Signature]:
    from signatures.declare import Signature, SignatureMeta

    name = name if isinstance(name, str) and name.isidentifier() else "Signature"
    # As `parse` has it: the class is of the module that asks for it.
    module = sys._getframe(2).f_globals.get("__name__", __name__)
    made: Any = SignatureMeta(name, (Signature,), {"__module__": module, "__qualname__": name}, spec=spec)
    return made  # type: ignore[no-any-return]


def read_json_schema(schema: Any = None, *, inputs: Any = None, outputs: Any = None, instructions: str = "") -> Spec:
    """Return the spec that a JSON Schema describes.

    schema: an object with the properties `inputs` and `outputs`, as `json_schema` writes it; its description is the
    instructions unless some are given. Or inputs and outputs: a schema of an object for each side. Raises
    SignatureError with every problem and its JSON pointer, never anything else.
    """
    if (schema is None) == (inputs is None and outputs is None):
        raise SignatureError("give either one schema of inputs and outputs, or inputs= and outputs=")
    if not isinstance(instructions, str):
        raise SignatureError(f"instructions must be a text, not {kind(instructions)}")
    reader = Fields()
    if schema is None:
        given = {"inputs": inputs, "outputs": outputs}
        sides = [[] if side is None else [Part(side, f"{name}#", side)] for name, side in given.items()]
    else:
        parts = reader.parts.flat([Part(schema, "#", schema)])
        sides = reader.sides(parts)
        instructions = instructions or reader.parts.text(parts, "description")
    fields = reader.side(sides[0], "input"), reader.side(sides[1], "output")
    reader.parts.fail_if_any()
    return Spec(*fields, instructions)
