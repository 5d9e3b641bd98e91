"""Looking for nodes in a type tree, and replacing them."""

from __future__ import annotations

from collections.abc import Callable

from signatures.types import Annotated, Constrained, Generic, Record, Type, Union, constrained, union


def holds(type_: Type, *kinds: type[Type]) -> bool:
    """Return whether a node of some kind is in a type."""
    return isinstance(type_, kinds) or any(holds(child, *kinds) for child in type_.children())


def rewritten(type_: Type, change: Callable[[Type], Type]) -> Type:
    """Return a type with `change` made to each of its nodes, the inner ones first."""
    node = type_
    match type_:
        case Generic(name, arguments, variadic):
            node = Generic(name, tuple(rewritten(one, change) for one in arguments), variadic)
        case Union(members):
            node = union(*(rewritten(one, change) for one in members))
        case Annotated(base, notes):
            node = Annotated(rewritten(base, change), notes)
        case Constrained(base, constraints):
            node = constrained(rewritten(base, change), constraints)
        case Record(fields):
            node = Record(tuple(one.replace(type=rewritten(one.type, change), typed=one.typed) for one in fields))
    return change(node)
