"""What DSPy work returns to the caller, and the account of where and how it ran."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Meta:
    """Where and how a result came about. Times are milliseconds; tokens = prompt + completion."""

    request_id: int
    worker: str
    pool: str
    attempt: int
    queue_ms: float
    run_ms: float
    total_ms: float
    lm_calls: int
    tokens: int
    cost_usd: float | None
    cached: bool
    executed_on: str = "worker"
    fallback_used: bool = False
    trace_id: str = ""


class Prediction(Mapping[str, Any]):
    """The output fields of DSPy work: a read-only mapping whose fields are attributes too.

    A field named like a method (`keys`, `items`, `meta`, …) is reached by `prediction["keys"]` only. Predictions are
    equal when their fields are. `meta` is None until it is set, once, by the client.
    """

    __slots__ = ("_fields", "_meta")

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = dict(fields)
        self._meta: Meta | None = None

    @property
    def meta(self) -> Meta | None:
        """Where and how this came about."""
        return self._meta

    @meta.setter
    def meta(self, meta: Meta) -> None:
        if self._meta is not None:
            raise AttributeError("the meta of a Prediction is set once")
        self._meta = meta

    def __getitem__(self, name: str) -> Any:
        return self._fields[name]

    def __getattr__(self, name: str) -> Any:
        # Only for what is no slot: `_fields` itself is missing while a copy is being built.
        if not name.startswith("_") and name in self._fields:
            return self._fields[name]
        known = "" if name.startswith("_") else f" (fields: {', '.join(self._fields)})"
        raise AttributeError(f"Prediction has no field {name!r}{known}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._fields]

    def __repr__(self) -> str:
        return f"Prediction({', '.join(f'{name}={value!r}' for name, value in self._fields.items())})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._fields, self._meta)

    def toDict(self) -> dict[str, Any]:
        """Return the fields as a new dict; the name is the one DSPy's users know."""
        return dict(self._fields)


def _rebuild(fields: dict[str, Any], meta: Meta | None) -> Prediction:
    prediction = Prediction(fields)
    prediction._meta = meta
    return prediction
