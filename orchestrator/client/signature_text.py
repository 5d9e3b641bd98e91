"""Signatures as they travel: texts, checked here, before anything is sent."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from orchestrator.errors import DspoolError, SignatureError
from signatures.errors import SignatureError as BadSignature

if TYPE_CHECKING:
    from signatures.declare import Signature
    from signatures.model import Spec

    SignatureLike: TypeAlias = str | type[Signature] | Spec


Encode: TypeAlias = Callable[[Any], bytes]
EncodeRows: TypeAlias = Callable[[list[Any]], bytes | None]

DSPY: Final = "dspy."  # how the operations begin that are modules of DSPy


def takes_signature(operation: str) -> bool:
    """Return whether the `signature` among an operation's args is one: not so for a program's own inputs."""
    return operation.startswith(DSPY) or operation == "validate"


def with_text(args: Any) -> Any:
    """Return args, or a program's target, with its `signature` as text. Raises SignatureError if that is a bad one.

    What is neither a text nor a signature is left to the other side to refuse.
    """
    if not isinstance(args, Mapping) or "signature" not in args:
        return args
    given = args["signature"]
    text = signature_text(given)
    return args if text is given else {**args, "signature": text}


def signature_text(signature: Any) -> Any:
    """Return the text of a signature; see `with_text`."""
    if isinstance(signature, str):
        _accept(signature)
        return signature
    spec = _spec(signature)
    if spec is None:
        return signature
    if spec.customs:
        names = ", ".join(map(repr, spec.customs))
        raise SignatureError(
            f"a signature with types of your own ({names}) cannot be sent as text; deploy a program that holds it, as "
            "client.deploy(name, 'package.module:Class'), and call that",
            text=spec.text,
        )
    _accept(spec.text)
    return spec.text


def signing(operation: str, encode: Encode, encode_rows: EncodeRows) -> tuple[Encode, EncodeRows]:
    """Return both ways of encoding an operation's rows, such that each row's signature is checked first."""
    if not takes_signature(operation):
        return encode, encode_rows

    def together(rows: list[Any]) -> bytes | None:
        try:
            signed = [with_text(row) for row in rows]
        except DspoolError:  # one of them is bad: they are encoded one by one
            return None
        return encode_rows(signed)

    return lambda row: encode(with_text(row)), together


def _accept(text: str) -> None:
    try:
        _read(text)
    except BadSignature as exc:
        raise SignatureError.of(exc) from None


@functools.lru_cache(maxsize=256)
def _read(text: str) -> None:
    from signatures.text.parser import read

    read(text)


def _spec(signature: Any) -> Spec | None:
    """Return the spec of a `Signature` class, or of itself; None for anything else."""
    from signatures.model import Spec

    found = signature if isinstance(signature, Spec) else getattr(signature, "spec", None)
    return found if isinstance(found, Spec) else None
