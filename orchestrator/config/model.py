"""What a configuration may contain: strict models of `dspool.yaml`, and the way from a key path to its type."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import UnionType
from typing import Annotated, Any, Final, Literal, Self, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    SecretStr,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from orchestrator.config.fields import (
    MAX_SECONDS,
    MODEL,
    MODULE,
    URL,
    AnyText,
    LMName,
    OperationName,
    Part,
    PoolName,
    ProgramName,
    Seconds,
    ServerName,
    Text,
    VariableName,
    auto_or_number,
    check,
    is_plain,
)
from pools.config import MAX_SIZE

KeyPath = tuple[str | int, ...]

# How errors name the choice that was taken between two shapes of a value. No key looks like these.
_BOUNDS_TAG, _NUMBER_TAG, _MAPPING_TAG, _NAME_TAG = "<bounds>", "<number>", "<mapping>", "<name>"
SHAPE_TAGS: Final = frozenset({_BOUNDS_TAG, _NUMBER_TAG, _MAPPING_TAG, _NAME_TAG})
_STORE_URL: Final = re.compile(r"postgresql(\+psycopg)?://\S+")


class Strict(BaseModel):
    """No unknown keys, no conversions (a bool is no number, "4" is no number), no nan, no infinity."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        protected_namespaces=(),
    )


class RestartModel(Strict):
    """Which ends call for a restart (type), and when: at once below max_restarts in window_s, else after backoff_s."""

    type: Literal["permanent", "transient", "temporary"] | None = None
    max_restarts: Annotated[int, Field(ge=0, le=10_000)] | None = None
    window_s: Seconds | None = None
    backoff_s: (
        Annotated[
            list[Seconds],
            Field(min_length=2, max_length=2),
            check(lambda pair: pair[0] <= pair[1], "must be [first, longest], the first not above the longest"),
        ]
        | None
    ) = None


class SizeModel(Strict):
    """A pool that grows and shrinks with its work: from `min` workers, with which it starts, to `max`."""

    min: Annotated[int, Field(ge=1, le=MAX_SIZE)] = 1
    max: Annotated[int, Field(ge=1, le=MAX_SIZE)]

    @field_validator("max")
    @classmethod
    def _not_below_min(cls, value: int, info: ValidationInfo) -> int:
        if value < (low := info.data.get("min", value)):
            raise ValueError(f"must not be below min ({low})")
        return value


def _shape_of_size(value: Any) -> str:
    return _BOUNDS_TAG if isinstance(value, dict) else _NUMBER_TAG


_ONE_OR_MORE: Final = {"type": "integer", "minimum": 1, "maximum": MAX_SIZE}
_BOUNDS: Final = {
    "type": "object",
    "properties": {"min": {**_ONE_OR_MORE, "default": 1}, "max": _ONE_OR_MORE},
    "required": ["max"],
    "additionalProperties": False,
}
_Number = Annotated[int | Literal["auto"], *auto_or_number(0, MAX_SIZE, otherwise="{min: …, max: …}")]
Size = Annotated[
    Annotated[SizeModel, Tag(_BOUNDS_TAG)] | Annotated[_Number, Tag(_NUMBER_TAG)],
    Discriminator(_shape_of_size),
    WithJsonSchema({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 0, "maximum": MAX_SIZE}, _BOUNDS]}),
]


class BreakerModel(Strict):
    """When a pool, or an operation in it, is given a rest: it failed too often of late. null turns it off."""

    window: Annotated[int, Field(ge=1, le=10_000)] | None = None
    min_calls: Annotated[int, Field(ge=1, le=10_000)] | None = None
    failure_rate: Part | None = None
    open_s: Seconds | None = None
    probes: Annotated[int, Field(ge=1, le=1000)] | None = None


class FallbackModel(Strict):
    """Where work goes that a pool cannot serve: to another pool, and, operation by operation, to another operation."""

    pool: PoolName | None = None
    operations: dict[OperationName, OperationName] = {}


def _shape_of_fallback(value: Any) -> str:
    return _MAPPING_TAG if isinstance(value, dict | FallbackModel) else _NAME_TAG


Fallback = Annotated[
    Annotated[FallbackModel, Tag(_MAPPING_TAG)] | Annotated[PoolName, Tag(_NAME_TAG)],
    Discriminator(_shape_of_fallback),
]


class BatchModel(Strict):
    """How many texts of all callers are embedded at once, and how long the first of them waits for the others."""

    max_items: Annotated[int, Field(ge=1, le=4096)] | None = None
    max_wait_ms: Annotated[float, Field(ge=0, le=10_000)] | None = None


class PoolModel(Strict):
    """One pool. What is absent has the pool's own default."""

    size: Size = "auto"
    slots: Annotated[int, Field(ge=1, le=1024)] | None = None
    prefetch: Annotated[int | Literal["auto"], *auto_or_number(0, 256)] = "auto"
    launcher: Literal["zygote", "spawn"] | None = None
    preload: list[Annotated[str, Field(pattern=MODULE)]] = []
    max_queue: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    default_deadline_s: Seconds | None = None
    heartbeat_interval_s: Seconds | None = None
    heartbeat_limit_s: Seconds | None = None
    grace_s: Seconds | None = None
    memory_limit_mb: Annotated[int, Field(ge=0, le=1 << 30)] | None = None
    max_requests: Annotated[int, Field(ge=0, le=1 << 53)] | None = None
    max_age_s: Annotated[float, Field(ge=0, le=MAX_SECONDS)] | None = None
    restart: RestartModel | None = None
    breaker: BreakerModel | None = BreakerModel()
    fallback: Fallback | None = None
    queue_age_s: Seconds | None = None
    batch: BatchModel | None = None
    python: Text | None = None
    env: dict[VariableName, AnyText] = {}


class LMModel(Strict):
    """One language model, called by its name."""

    model: Annotated[str, Field(pattern=MODEL)]
    api_key: SecretStr | None = None
    api_base: Annotated[str, Field(pattern=URL)] | None = None
    params: Annotated[
        dict[str, Any], check(is_plain, "must hold plain values: text, finite numbers, lists, mappings")
    ] = {}
    timeout_s: Seconds = 60.0
    max_concurrency: Annotated[int, Field(ge=1, le=10_000)] = 32


class EmbedderModel(Strict):
    """What `embed` embeds with. dim: the length of its vectors; batch_size: texts that it takes at once."""

    model: Annotated[
        str,
        Field(pattern=MODEL),
        check(
            lambda model: model == "offline/hash" or not model.startswith("offline/"),
            "must be offline/hash (the only one built in), sentence-transformers/FOLDER_OR_PACKAGE or provider/name",
        ),
    ] = "offline/hash"
    dim: Annotated[int, Field(ge=16, le=4096)] | None = None
    api_key: SecretStr | None = None
    api_base: Annotated[str, Field(pattern=URL)] | None = None
    params: Annotated[
        dict[str, Any], check(is_plain, "must hold plain values: text, finite numbers, lists, mappings")
    ] = {}
    timeout_s: Seconds = 60.0
    batch_size: Annotated[int, Field(ge=1, le=4096)] | None = None


class McpModel(Strict):
    """One MCP server, called by its name: a command that workers start, with variables of its own, or an address."""

    command: Annotated[list[Text], Field(min_length=1)] | None = None
    env: dict[VariableName, AnyText] = {}
    url: Annotated[str, Field(pattern=URL)] | None = None

    @model_validator(mode="after")
    def _one_way_to_it(self) -> Self:
        if (self.command is None) == (self.url is None):
            raise ValueError("must have either command or url")
        if self.env and self.url is not None:
            raise ValueError("must have env with a command alone: a server with a url is not started here")
        return self


class StoreModel(Strict):
    """Where programs, durable sessions and events are kept: in PostgreSQL by its url; null = in a file in data_dir."""

    url: (
        Annotated[
            SecretStr,
            check(
                lambda url: _STORE_URL.fullmatch(url.get_secret_value()) is not None,
                "must be null (a file in data_dir) or postgresql+psycopg://USER:PASSWORD@HOST/DATABASE",
            ),
        ]
        | None
    ) = None


class LimitsModel(Strict):
    """Limits of a message, of a client, of a principal.

    shared_bytes: of payloads in shared memory, per client; 0 = it is not used. principal_rows: accepted and unsettled.
    poison_deaths: by one request.
    """

    header_bytes: Annotated[int, Field(ge=1024, le=65_536)] = 65_536
    message_bytes: Annotated[int, Field(ge=65_536, le=2**31 - 1)] = 64 * 1024 * 1024
    nesting: Annotated[int, Field(ge=8, le=256)] = 128
    shared_bytes: Annotated[int, Field(ge=0, le=2**40)] = 256 * 1024 * 1024
    principal_rows: Annotated[int, Field(ge=1, le=10_000_000)] = 16_384
    poison_deaths: Annotated[int, Field(ge=0, le=1000)] = 2


class DegradationModel(Strict):
    """When less is let in because the fleet is in trouble: parts of 1, held for hold_s seconds. null turns it off."""

    cpu: Part | None = None
    memory: Part | None = None
    queue: Part | None = None
    hold_s: Annotated[float, Field(ge=0, le=MAX_SECONDS)] | None = None


def _check_target(value: Any) -> Any:
    if (isinstance(value, str) and ":" in value.strip(":") and "\0" not in value) or (
        isinstance(value, dict) and value and is_plain(value)
    ):
        return value
    raise ValueError("must be package.module:Class, file.py:Class or a mapping such as {module: …, signature: …}")


class ProgramModel(Strict):
    """A program that is deployed when the coordinator starts. state: a JSON file, as dspy saves it."""

    target: Annotated[
        Any,
        PlainValidator(_check_target),
        WithJsonSchema({"anyOf": [{"type": "string", "pattern": ".:."}, {"type": "object", "minProperties": 1}]}),
    ]
    pool: PoolName = "general"
    state: Text | None = None
    config: Annotated[dict[str, Any], check(is_plain, "must be plain values with text keys")] | None = None


class SecurityModel(Strict):
    """What is off unless it is asked for. allow_pickled_programs: programs from pickles, which run what is in them."""

    allow_pickled_programs: bool = False


class SessionsModel(Strict):
    """Sessions: what one is opened with, and how much there may be of them (bytes: of state and history)."""

    ttl_s: Seconds | None = None
    max: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    affinity: Literal["hint", "strict_queue", "strict_fail_fast"] | None = None
    on_loss: Literal["restore", "fail"] | None = None
    durable: bool | None = None
    max_bytes: Annotated[int, Field(ge=1024, le=2**24)] | None = None
    total_bytes: Annotated[int, Field(ge=65_536, le=2**40)] | None = None
    history: Annotated[int, Field(ge=0, le=10_000)] | None = None


class FileModel(Strict):
    """The whole of `dspool.yaml`."""

    model_config = ConfigDict(title="dspool.yaml")

    pools: dict[PoolName, PoolModel] = {}
    lms: dict[LMName, LMModel] = {}
    embedder: EmbedderModel = EmbedderModel()
    mcp: dict[ServerName, McpModel] = {}
    programs: dict[ProgramName, ProgramModel] = {}
    store: StoreModel = StoreModel()
    python_path: list[Text] = []
    data_dir: Text | None = None
    run_dir: Text | None = None
    limits: LimitsModel = LimitsModel()
    degradation: DegradationModel | None = DegradationModel()
    sessions: SessionsModel = SessionsModel()
    security: SecurityModel = SecurityModel()
    faults: bool = False
    log_level: Literal["debug", "info", "warning", "error"] = "info"


# --- from a key path to its type --------------------------------------------------------------------


def type_at(path: Sequence[str | int]) -> Any:
    """Return the bare type of the value at `path`: a model, dict, list, str …; None where no value may stand."""
    found: Any = FileModel
    for key in path:
        model = _model_in(found)
        if model is not None:
            field = model.model_fields.get(str(key))
            found = None if field is None else _bare(field.annotation)
        elif get_origin(found) in (dict, list):
            found = _bare(get_args(found)[-1])
        else:
            return None
    return found


def is_mapping(path: Sequence[str | int]) -> bool:
    """Return whether a mapping belongs at `path`."""
    found = type_at(path)
    return get_origin(found) is dict or (isinstance(found, type) and issubclass(found, BaseModel))


def null_turns_off(path: Sequence[str | int]) -> bool:
    """Return whether null at `path` says something, where a mapping belongs: that what it describes is off."""
    return tuple(path) == ("degradation",) or (len(path) == 3 and path[0] == "pools" and path[2] == "breaker")


def is_text(path: Sequence[str | int]) -> bool:
    """Return whether text belongs at `path`: then `123` from the environment is text too."""
    return type_at(path) in (str, SecretStr)


def keys_at(path: Sequence[str | int]) -> list[str]:
    """Return the keys that the mapping at `path` knows; empty where any key may stand."""
    model = _model_in(type_at(path))
    return [] if model is None else list(model.model_fields)


def _model_in(found: Any) -> type[BaseModel] | None:
    """Return the model that a type is, or that is one of its choices."""
    choices = map(_bare, get_args(found)) if get_origin(found) in (Union, UnionType) else (found,)
    return next((each for each in choices if isinstance(each, type) and issubclass(each, BaseModel)), None)


def _bare(annotation: Any) -> Any:
    """Strip Annotated and Optional."""
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    choices = [choice for choice in get_args(annotation) if choice is not type(None)]
    if len(choices) == 1 and len(get_args(annotation)) == 2 and get_origin(annotation) is not dict:
        return _bare(choices[0])
    return annotation
