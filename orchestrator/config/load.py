"""From sources to `Settings`: file < environment < overrides, each checked, all problems told at once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from bridge.protocol.errors import closest
from orchestrator.config.check import check
from orchestrator.config.model import FallbackModel, FileModel, KeyPath, PoolModel, SizeModel
from orchestrator.config.settings import (
    EmbedderConfig,
    Limits,
    LMConfig,
    McpConfig,
    ProgramConfig,
    Settings,
    StoreConfig,
)
from orchestrator.config.source import (
    Layer,
    Problem,
    anchor,
    last_set,
    merge,
    origin_of,
    read_environment,
    read_overrides,
)
from orchestrator.config.yamlfile import MAX_FILE_BYTES, read_yaml
from orchestrator.errors import ConfigError
from orchestrator.rundir import default_data_dir, default_run_dir
from pools.config import (
    BatchConfig,
    BreakerConfig,
    DegradationConfig,
    FleetConfig,
    Machine,
    PoolConfig,
    PoolKind,
    SessionsConfig,
)
from pools.general import GENERAL
from pools.neural import NEURAL
from pools.optimizer import OPTIMIZER
from pools.services import FAULTS, INNER, OPERATIONS, SERVICES

DEFAULT_FILE: Final = "dspool.yaml"
# The built-in embedder (`bridge.worker.embedding.hashing`).
_HASH_MODEL, _HASH_DIM = "offline/hash", 256
KINDS: Final = {kind.defaults.name: kind for kind in (GENERAL, OPTIMIZER, NEURAL)}
_RECYCLING: Final = ("memory_limit_mb", "max_requests", "max_age_s")
DEFAULT_LMS: Final = {"default": {"model": "offline/knn"}}


def load(
    file: str | os.PathLike[str] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    machine: Machine | None = None,
) -> Settings:
    """Return the settings.

    file: what to read; None = DSPOOL_CONFIG, else ./dspool.yaml if there is one. environ: None = this process's.
    overrides: the shape of the file; also plain JSON of it. machine: sizes what is `auto`; None = this one.
    Paths in the file are meant from the file's folder, others from the current one.
    Raises ConfigError that lists every problem.
    """
    environ = os.environ if environ is None else environ
    home = environ.get("HOME") or os.path.expanduser("~")
    here = Path.cwd()
    chosen, bottom = _read_file(file or environ.get("DSPOOL_CONFIG") or None, environ)
    variables, top = read_environment(environ), read_overrides(overrides or {}, environ)
    for layer, base in ((bottom, chosen.parent if chosen else here), (variables, here), (top, here)):
        anchor(layer, base, home)
    # Without a model of its own the default one is `offline/knn`, whatever else is said about it.
    merged = merge([Layer({"lms": DEFAULT_LMS}), bottom, variables, top])
    model = check(merged)
    settings = None if model is None else _settings(model, merged, environ, machine or this_machine(environ), chosen)
    if settings is None or merged.problems:
        raise _config_error(merged.problems)
    return settings


def schema() -> dict[str, Any]:
    """Return the JSON Schema of `dspool.yaml`."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **FileModel.model_json_schema()}


def this_machine(environ: Mapping[str, str] | None = None, devices: Path = Path("/dev")) -> Machine:
    """Return what pools are sized by here: cores this process may use, and GPUs that it may and the system shows.

    devices: the folder of the system's devices. GPUs are numbered as CUDA does: among those that are there, whatever
    the numbers in their names. Where CUDA_VISIBLE_DEVICES says which of them, these are all.
    """
    count = sum(1 for device in devices.glob("nvidia[0-9]*") if device.name[6:].isdigit())
    gpus = tuple(map(str, range(count)))
    visible = (environ or {}).get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        gpus = _visible(visible)
    return Machine(cores=len(os.sched_getaffinity(0)), gpus=len(gpus), devices=gpus)


def _visible(listed: str) -> tuple[str, ...]:
    """Return the GPUs in a CUDA_VISIBLE_DEVICES: numbers, or ids; as for CUDA, what cannot be one ends the list."""
    found: list[str] = []
    for one in map(str.strip, listed.split(",")):
        if not (one.isdecimal() or one.startswith(("GPU-", "MIG-"))) or one in found:
            break
        found.append(one)
    return tuple(found)


def _read_file(named: str | os.PathLike[str] | None, environ: Mapping[str, str]) -> tuple[Path | None, Layer]:
    shown = str(named or DEFAULT_FILE)
    path = Path(shown).expanduser().absolute()
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        if named is None and isinstance(exc, FileNotFoundError):
            return None, Layer()
        return path, Layer(problems=[Problem(shown, "", f"cannot be read: {exc.strerror}")])
    return path, read_yaml(data, shown, environ)


def _config_error(problems: list[Problem]) -> ConfigError:
    problems = sorted(problems, key=_place)
    count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
    lines = [f"{count} in the configuration:", *(f"  {problem}" for problem in problems)]
    return ConfigError("\n".join(lines), path=problems[0].path, problems=[problem._asdict() for problem in problems])


def _place(problem: Problem) -> tuple[str, int]:
    source, _, line = problem.where.rpartition(":")
    return (source, int(line)) if line.isdigit() else (problem.where, 0)


# --- from the model to settings ---------------------------------------------------------------------


def _settings(
    model: FileModel, layer: Layer, environ: Mapping[str, str], machine: Machine, file: Path | None
) -> Settings:
    names = [*KINDS, *(name for name in model.pools if name not in KINDS)]
    if SERVICES.name in names:
        where = ("pools", SERVICES.name)
        message = "is the name of the coordinator's own process: a pool needs another one"
        layer.problem(origin_of(layer.origins, where), where, message)
    pools = tuple(_pool(name, model.pools.get(name, PoolModel()), machine, layer, environ) for name in names)
    homes = {operation: name for name, kind in KINDS.items() for operation in kind.operations}
    homes |= dict.fromkeys(OPERATIONS | INNER | (FAULTS if model.faults else frozenset()), SERVICES.name)
    lms = {
        name: LMConfig(
            model=lm.model,
            api_key=lm.api_key,
            api_base=lm.api_base,
            params=lm.params,
            timeout_s=lm.timeout_s,
            max_concurrency=lm.max_concurrency,
        )
        for name, lm in model.lms.items()
    }
    for pool in pools:
        _check_fallback(pool, names, layer)
    limits = model.limits
    return Settings(
        fleet=FleetConfig(
            pools=(*pools, SERVICES),
            homes=homes,
            inner=INNER,
            principal_rows=limits.principal_rows,
            poison_deaths=limits.poison_deaths,
            degradation=_degradation(model),
            sessions=_sessions(model),
        ),
        lms=lms,
        embedder=_embedder(model),
        mcp={
            name: McpConfig(command=tuple(one.command or ()), env=one.env, url=one.url)
            for name, one in model.mcp.items()
        },
        programs=_programs(model, names, layer),
        store=StoreConfig(url=model.store.url),
        python_path=tuple(model.python_path),
        data_dir=Path(model.data_dir) if model.data_dir else default_data_dir(environ),
        run_dir=Path(model.run_dir) if model.run_dir else default_run_dir(environ),
        limits=Limits(
            header_bytes=limits.header_bytes,
            message_bytes=limits.message_bytes,
            nesting=limits.nesting,
            shared_bytes=limits.shared_bytes,
        ),
        faults=model.faults,
        log_level=model.log_level,
        allow_pickled_programs=model.security.allow_pickled_programs,
        file=file,
    )


def _pool(name: str, given: PoolModel, machine: Machine, layer: Layer, environ: Mapping[str, str]) -> PoolConfig:
    """Lay what was given over the defaults of the pool's kind; a pool of another name starts from general's."""
    kind: PoolKind = KINDS.get(name, GENERAL)
    pool = kind.on(machine, name=name)
    changes = _given(given, "slots", "max_queue", "heartbeat_interval_s", "heartbeat_limit_s", "grace_s", *_RECYCLING)
    changes |= _given(given, "launcher", "queue_age_s")
    changes |= _trouble(given, pool)
    # Here null says something: no deadline.
    if "default_deadline_s" in given.model_fields_set:
        changes["default_deadline_s"] = given.default_deadline_s
    if isinstance(given.size, SizeModel):
        changes["size"] = given.size.min
        changes["max_size"] = given.size.max if given.size.max > given.size.min else None
    elif given.size != "auto":
        changes["size"] = given.size
    if given.batch is not None:
        changes["batch"] = replace(pool.batch or BatchConfig(), **_given(given.batch, "max_items", "max_wait_ms"))
    batch = changes.get("batch", pool.batch)
    if given.prefetch != "auto":
        changes["prefetch"] = given.prefetch
    elif batch is not None:
        changes["prefetch"] = batch.prefetch
    if given.restart is not None:
        restart = _given(given.restart, "type", "max_restarts", "window_s", "backoff_s")
        if "backoff_s" in restart:
            restart["backoff_s"] = tuple(restart["backoff_s"])
        changes["restart"] = replace(pool.restart, **restart)
    changes["python"] = _interpreter(name, given.python, layer, environ)
    pool = replace(pool, env=given.env, preload=tuple(given.preload), **changes)
    if pool.preload and (pool.launcher == "spawn" or pool.python is not None):
        where = ("pools", name, "preload")
        message = "only what zygotes fork is preloaded: not with launcher: spawn, nor with a python of the pool's own"
        layer.problem(origin_of(layer.origins, where), where, message)
    interval_s, limit_s = pool.heartbeat_interval_s, pool.heartbeat_limit_s
    if limit_s <= interval_s:
        _disorder(
            layer,
            ("pools", name),
            ("heartbeat_limit_s", limit_s, "above"),
            ("heartbeat_interval_s", interval_s, "below"),
        )
    if pool.breaker is not None and pool.breaker.min_calls > pool.breaker.window:
        least, window = pool.breaker.min_calls, pool.breaker.window
        _disorder(layer, ("pools", name, "breaker"), ("min_calls", least, "at most"), ("window", window, "at least"))
    return pool


def _programs(model: FileModel, pools: list[str], layer: Layer) -> dict[str, ProgramConfig]:
    """Return the programs; note a problem for one whose pool is not there."""
    for name, given in model.programs.items():
        if given.pool not in pools:
            where: KeyPath = ("programs", name, "pool")
            layer.problem(origin_of(layer.origins, where), where, _no_pool(given.pool, pools))
    return {
        name: ProgramConfig(target=given.target, pool=given.pool, state=given.state, config=given.config)
        for name, given in model.programs.items()
    }


def _embedder(model: FileModel) -> EmbedderConfig:
    given = model.embedder
    return EmbedderConfig(
        model=given.model,
        dim=given.dim or (_HASH_DIM if given.model == _HASH_MODEL else None),
        api_key=given.api_key,
        api_base=given.api_base,
        params=given.params,
        timeout_s=given.timeout_s,
        batch_size=given.batch_size,
    )


def _trouble(given: PoolModel, pool: PoolConfig) -> dict[str, Any]:
    """Return what a pool does when much fails: its breaker, where its work goes then."""
    changes: dict[str, Any] = {"breaker": None}
    if given.breaker is not None:
        breaker = _given(given.breaker, "window", "min_calls", "failure_rate", "open_s", "probes")
        changes["breaker"] = replace(pool.breaker or BreakerConfig(), **breaker)
    if isinstance(given.fallback, FallbackModel):
        changes |= {"fallback": given.fallback.pool, "fallback_operations": given.fallback.operations}
    elif given.fallback is not None:
        changes["fallback"] = given.fallback
    return changes


def _check_fallback(pool: PoolConfig, names: list[str], layer: Layer) -> None:
    """Note a problem if a pool falls back on itself, or on one that is not there."""
    if pool.fallback is None or (pool.fallback in names and pool.fallback != pool.name):
        return
    where: KeyPath = ("pools", pool.name, "fallback")
    where = (*where, "pool") if (*where, "pool") in layer.origins else where
    message = "must be another pool than the pool itself"
    if pool.fallback != pool.name:
        message = _no_pool(pool.fallback, names)
    layer.problem(origin_of(layer.origins, where), where, message)


def _no_pool(name: str, pools: list[str]) -> str:
    close = closest(name, pools)
    hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else f" (known: {', '.join(pools)})"
    return f"no such pool: {name}{hint}"


def _degradation(model: FileModel) -> DegradationConfig | None:
    given = model.degradation
    return None if given is None else DegradationConfig(**_given(given, "cpu", "memory", "queue", "hold_s"))


def _sessions(model: FileModel) -> SessionsConfig:
    keys = ("ttl_s", "max", "affinity", "on_loss", "durable", "max_bytes", "total_bytes", "history")
    return SessionsConfig(**_given(model.sessions, *keys))


def _disorder(layer: Layer, base: KeyPath, *ends: tuple[str, float, str]) -> None:
    """Note that two values do not go together, where the one was set that was set last.

    ends: of both the key, the value, and how it must lie to the other.
    """
    wrong = last_set(layer.origins, *((*base, key) for key, _, _ in ends))
    (key, value, relation), (other, than, _) = ends if wrong[-1] == ends[0][0] else ends[::-1]
    where = (*base, key)
    layer.problem(origin_of(layer.origins, where), where, f"must be {relation} {other}, got {value:g} and {than:g}")


def _given(model: BaseModel, *keys: str) -> dict[str, Any]:
    return {key: value for key in keys if (value := getattr(model, key)) is not None}


def _interpreter(name: str, python: str | None, layer: Layer, environ: Mapping[str, str]) -> str | None:
    if python is None:
        return None
    found = shutil.which(python, path=environ.get("PATH"))
    if found is None:
        where = ("pools", name, "python")
        layer.problem(origin_of(layer.origins, where), where, f"no such interpreter: {python}")
    return found
