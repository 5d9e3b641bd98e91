"""What DSPy work returns to the caller, and the account of where and how it ran."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping, Sequence
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


class Completions:
    """The answers to one call: `completions.answer` and `completions["answer"]` are lists, `completions[0]` is one."""

    __slots__ = ("_columns",)

    def __init__(self, columns: Mapping[str, Sequence[Any]]) -> None:
        self._columns = {name: list(values) for name, values in columns.items()}

    def items(self) -> ItemsView[str, list[Any]]:
        """Return the fields with all their values."""
        return self._columns.items()

    def __getitem__(self, key: str | int) -> Any:
        if isinstance(key, str):
            return self._columns[key]
        if not 0 <= key < len(self):
            raise IndexError(f"there are {len(self)} completions, no number {key}")
        return Prediction({name: values[key] for name, values in self._columns.items()})

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and name in self._columns:
            return self._columns[name]
        raise AttributeError(f"there is no field {name!r} in the completions")

    def __len__(self) -> int:
        return max(map(len, self._columns.values()), default=0)

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def __eq__(self, other: object) -> bool:
        return self._columns == other._columns if isinstance(other, Completions) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Completions({', '.join(f'{name}={values!r}' for name, values in self._columns.items())})"


class Prediction(Mapping[str, Any]):
    """The output fields of DSPy work: a read-only mapping whose fields are attributes too.

    A field named like a method (`keys`, `items`, `meta`, …) is reached by `prediction["keys"]` only. Predictions are
    equal when their fields are. `meta` is None until it is set, once, by the client.

    Attributes besides, where no field has the name: `completions`, all answers where several were asked for (of a
    single one, the fields); `usage`, the tokens by language model as DSPy counted them, or None. With a field `score`
    it counts as that number in comparisons, sums and quotients, as DSPy's does.
    """

    __slots__ = ("_completions", "_fields", "_meta", "_usage")

    def __init__(
        self,
        fields: Mapping[str, Any],
        *,
        completions: Mapping[str, Sequence[Any]] | None = None,
        usage: Mapping[str, Any] | None = None,
    ) -> None:
        self._fields = dict(fields)
        self._completions = completions
        self._usage = usage
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

    @property
    def _extras(self) -> dict[str, Any]:
        """What travels besides the fields: `completions` and `usage`, where there are any."""
        if self._completions is None and self._usage is None:
            return {}
        extras = {"completions": self._completions, "usage": self._usage}
        return {name: dict(value) for name, value in extras.items() if value is not None}

    @property
    def _parts(self) -> dict[str, Any]:
        """All that travels, in one mapping; not a copy where there are fields only."""
        if self._completions is None and self._usage is None:
            return self._fields
        return {**self._extras, **self._fields}

    def get_lm_usage(self) -> Mapping[str, Any] | None:
        """Return `usage`; the name is the one DSPy's users know."""
        return self._usage

    def __getitem__(self, name: str) -> Any:
        return self._fields[name]

    def __getattr__(self, name: str) -> Any:
        # Only for what is no slot: `_fields` itself is missing while a copy is being built.
        if not name.startswith("_"):
            if name in self._fields:
                return self._fields[name]
            if name == "completions":
                return Completions(self._completions or {name: [value] for name, value in self._fields.items()})
            if name == "usage":
                return self._usage
        known = "" if name.startswith("_") else f" (fields: {', '.join(self._fields)})"
        raise AttributeError(f"Prediction has no field {name!r}{known}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), "completions", "usage", *self._fields]

    def __repr__(self) -> str:
        return f"Prediction({', '.join(f'{name}={value!r}' for name, value in self._fields.items())})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._fields, self._meta, self._completions, self._usage)

    def __float__(self) -> float:
        if "score" not in self._fields:
            raise ValueError("this Prediction has no field 'score' to count as a number")
        return float(self._fields["score"])

    def __lt__(self, other: Prediction | float) -> bool:
        return float(self) < float(other)

    def __le__(self, other: Prediction | float) -> bool:
        return float(self) <= float(other)

    def __gt__(self, other: Prediction | float) -> bool:
        return float(self) > float(other)

    def __ge__(self, other: Prediction | float) -> bool:
        return float(self) >= float(other)

    def __add__(self, other: Prediction | float) -> float:
        return float(self) + float(other)

    __radd__ = __add__

    def __truediv__(self, other: Prediction | float) -> float:
        return float(self) / float(other)

    def __rtruediv__(self, other: Prediction | float) -> float:
        return float(other) / float(self)

    def toDict(self) -> dict[str, Any]:
        """Return the fields as a new dict; the name is the one DSPy's users know."""
        return dict(self._fields)


def _rebuild(
    fields: dict[str, Any],
    meta: Meta | None,
    completions: Mapping[str, Sequence[Any]] | None = None,
    usage: Mapping[str, Any] | None = None,
) -> Prediction:
    prediction = Prediction(fields, completions=completions, usage=usage)
    prediction._meta = meta
    return prediction
