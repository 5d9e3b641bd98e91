"""From sources to `Settings`: file < environment < overrides, each checked, all problems told at once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from orchestrator.config.check import check
from orchestrator.config.model import FileModel, PoolModel, SizeModel
from orchestrator.config.settings import Limits, LMConfig, Settings
from orchestrator.config.source import Layer, Problem, anchor, merge, origin_of, read_environment, read_overrides
from orchestrator.config.yamlfile import MAX_FILE_BYTES, read_yaml
from orchestrator.errors import ConfigError
from orchestrator.rundir import default_data_dir, default_run_dir
from pools.config import FleetConfig, Machine, PoolConfig, PoolKind
from pools.general import GENERAL
from pools.neural import NEURAL
from pools.optimizer import OPTIMIZER

DEFAULT_FILE: Final = "dspool.yaml"
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
    settings = None if model is None else _settings(model, merged, environ, machine or this_machine(), chosen)
    if settings is None or merged.problems:
        raise _config_error(merged.problems)
    return settings


def schema() -> dict[str, Any]:
    """Return the JSON Schema of `dspool.yaml`."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **FileModel.model_json_schema()}


def this_machine() -> Machine:
    """Return what pools are sized by here: cores this process may use, and GPUs the system shows."""
    devices = Path("/dev").glob("nvidia[0-9]*")
    return Machine(cores=len(os.sched_getaffinity(0)), gpus=sum(1 for device in devices if device.name[6:].isdigit()))


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
    pools = tuple(_pool(name, model.pools.get(name, PoolModel()), machine, layer, environ) for name in names)
    homes = {operation: name for name, kind in KINDS.items() for operation in kind.operations}
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
    return Settings(
        fleet=FleetConfig(pools=pools, homes=homes),
        lms=lms,
        python_path=tuple(model.python_path),
        data_dir=Path(model.data_dir) if model.data_dir else default_data_dir(environ),
        run_dir=Path(model.run_dir) if model.run_dir else default_run_dir(environ),
        limits=Limits(**model.limits.model_dump()),
        faults=model.faults,
        log_level=model.log_level,
        file=file,
    )


def _pool(name: str, given: PoolModel, machine: Machine, layer: Layer, environ: Mapping[str, str]) -> PoolConfig:
    """Lay what was given over the defaults of the pool's kind; a pool of another name starts from general's."""
    kind: PoolKind = KINDS.get(name, GENERAL)
    pool = kind.on(machine, name=name)
    changes = _given(given, "slots", "max_queue", "heartbeat_interval_s", "heartbeat_limit_s", "grace_s", *_RECYCLING)
    changes |= _given(given, "launcher")
    # Here null says something: no deadline.
    if "default_deadline_s" in given.model_fields_set:
        changes["default_deadline_s"] = given.default_deadline_s
    if isinstance(given.size, SizeModel):
        changes["size"] = given.size.min
        changes["max_size"] = given.size.max if given.size.max > given.size.min else None
    elif given.size != "auto":
        changes["size"] = given.size
    if given.prefetch != "auto":
        changes["prefetch"] = given.prefetch
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
    if pool.heartbeat_limit_s <= pool.heartbeat_interval_s:
        where = ("pools", name, "heartbeat_limit_s")
        message = (
            f"must be above heartbeat_interval_s, got {pool.heartbeat_limit_s:g} and {pool.heartbeat_interval_s:g}"
        )
        layer.problem(origin_of(layer.origins, where), where, message)
    return pool


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
