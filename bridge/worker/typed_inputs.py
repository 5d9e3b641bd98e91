"""Typed values as programs take them: DSPy's own objects, and what a caller may give in place of one."""

from __future__ import annotations

import base64
import functools
from typing import Annotated, Any, Final

import dspy  # type: ignore[import-untyped]

# A value becomes one of its types only where these are loaded.
import dspy.experimental  # type: ignore[import-untyped]
import pydantic

from bridge.protocol import typed
from bridge.protocol.record import Record
from bridge.protocol.values import Prediction
from signatures.annotations import to_annotation
from signatures.types import Media, Type

_ATOMS: Final = frozenset({type(None), bool, int, float, str, bytes})
# How the formats begin that language models take; of WebP what follows the size.
_IMAGES: Final = ((b"\x89PNG\r\n\x1a\n", "png"), (b"\xff\xd8\xff", "jpeg"), (b"GIF8", "gif"))
_IMAGE_ADVICE: Final = (
    "an image is a data: URI, a URL (https, http, gs) or the bytes of a PNG, JPEG, GIF or WebP; "
    "a worker opens no file and no URL for a caller: of a file send dspy.Image.from_path(…)"
)
_FILE_ADVICE: Final = (
    "the file_data of a dspy.File is a data: URI (data:<media type>;base64,<data>); "
    "dspy.File.from_path(…) and dspy.File.from_bytes(…) make one"
)
_REASON_CHARS: Final = 200


def real(value: Any, path: str, problems: list[tuple[str, str]]) -> Any:
    """Return an input with our Predictions as DSPy's, at any depth of lists, tuples and dicts.

    What says that it is one of DSPy's types and is none (an `Image` of a path) is added to `problems`, with its path.
    """
    kind = type(value)
    if kind in _ATOMS:
        return value
    if kind is Prediction:
        return _prediction(value, path, problems)
    if kind is dspy.File and not _is_file_data(value.file_data):
        problems.append((path, f"{path}: {_FILE_ADVICE}"))
        return value
    if kind is Record and value._kind.startswith("dspy."):
        problems.append((path, f"{path} is no {value._kind}: {_reason(value)}"))
        return value
    if kind is dict:
        if _ATOMS.issuperset(map(type, value.values())):
            return value
        return {name: real(item, f"{path}.{name}", problems) for name, item in value.items()}
    if kind in (list, tuple) and not _ATOMS.issuperset(map(type, value)):
        return kind(real(item, f"{path}[{number}]", problems) for number, item in enumerate(value))
    return value


def _prediction(value: Prediction, path: str, problems: list[tuple[str, str]]) -> Any:
    fields = real(value.toDict(), path, problems)
    extras = real(value._extras, path, problems)
    made = dspy.Prediction.from_completions(extras["completions"]) if "completions" in extras else dspy.Prediction()
    for name, item in fields.items():
        # A field may be called as a method.
        made[name] = item
    made.set_lm_usage(extras.get("usage"))
    return made


def _reason(record: Record) -> str:
    cls = typed.class_of(record._kind)
    if cls is None:
        return f"this worker's DSPy ({dspy.__version__}) has no such type"
    try:
        record.to(cls)
    except pydantic.ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False, include_context=False)[0]
        reason = first["msg"]
    except Exception as exc:  # noqa: BLE001 - DSPy's types raise what they like
        reason = f"{type(exc).__name__}: {exc}"
    else:
        reason = "its fields are not as it has them"
    return reason[:_REASON_CHARS]


# --- what may be given in place of one of DSPy's types --------------------------------------------


def annotation_of(type_: Type) -> Any:
    """Return the annotation of a type whose DSPy types take what `_instead` says."""
    return to_annotation(type_, media=_lenient, constrain=lambda annotation, _: annotation)


def _lenient(node: Media) -> Any:
    cls = getattr(dspy, node.name)
    if node.argument is not None:
        cls = cls[node.argument]
    return Annotated[cls, pydantic.BeforeValidator(functools.partial(_instead, cls))]


def _instead(cls: Any, value: Any) -> Any:
    """Return what a type of DSPy's is made of, of what was given. Raises ValueError for what can be none."""
    if isinstance(value, cls):
        return value
    if isinstance(value, dspy.Type) and issubclass(cls, type(value)):
        # A Code arrives without its language.
        return dict(vars(value))
    if cls is dspy.Image and isinstance(value, str | bytes):
        return _image(value)
    if cls is dspy.File and not _is_file_data(value.get("file_data") if isinstance(value, dict) else value):
        raise ValueError(_FILE_ADVICE)
    return value


def _is_file_data(data: Any) -> bool:
    """Return whether it can be sent as a file's data. None says that there is none: the file is one of the provider's.

    What is no text is left to DSPy.
    """
    if not isinstance(data, str) or not data:
        return True
    head, _, payload = data.partition(",")
    scheme, _, media = head.removesuffix(";base64").partition(":")
    return head.endswith(";base64") and scheme == "data" and bool(media and payload)


def _image(value: str | bytes) -> Any:
    try:
        return dspy.Image(value if isinstance(value, str) else _data_uri(value))
    except ValueError:
        raise ValueError(_IMAGE_ADVICE) from None


def _data_uri(image: bytes) -> str:
    """Return the bytes of an image as a data URI. Raises ValueError if they are of no format that is known."""
    found = next((name for start, name in _IMAGES if image.startswith(start)), None)
    if found is None and image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        found = "webp"
    if found is None:
        raise ValueError(_IMAGE_ADVICE)
    return f"data:image/{found};base64,{base64.b64encode(image).decode()}"
