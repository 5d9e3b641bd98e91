from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import Settings, load, schema, show, this_machine
from orchestrator.config.model import keys_at
from orchestrator.errors import ConfigError
from pools.config import Machine, PoolConfig
from pools.general import GENERAL
from pools.neural import NEURAL
from pools.optimizer import OPTIMIZER

MACHINE = Machine(cores=8, gpus=2)
SIZE = "must be auto, a whole number from 0 to 1024 or {min: …, max: …}"
Load = Callable[..., Settings]


@pytest.fixture
def load_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load a text as ./dspool.yaml."""
    monkeypatch.chdir(tmp_path)

    def loaded(text: str = "", environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
        (tmp_path / "dspool.yaml").write_text(text)
        return load(environ=environ or {}, overrides=overrides, machine=MACHINE)

    return loaded


def problems_of(loading: Callable[[], object]) -> list[tuple[str, str, str]]:
    with pytest.raises(ConfigError) as caught:
        loading()
    found = [(problem["where"], problem["path"], problem["message"]) for problem in caught.value.problems]
    for where, path, message in found:
        assert ": ".join(filter(None, (where, path, message))) in str(caught.value)
    return found


def pool(settings: Settings, name: str = "general") -> PoolConfig:
    return settings.fleet.pool(name)


# --- defaults ---------------------------------------------------------------------------------------


def test_nothing_configured_gives_the_pools_own_defaults(load_text: Load) -> None:
    settings = load_text()
    assert settings.pools == (GENERAL.on(MACHINE), OPTIMIZER.on(MACHINE), NEURAL.on(MACHINE))
    assert [(pool.name, pool.size, pool.slots) for pool in settings.pools] == [
        ("general", 8, 8), ("optimizer", 2, 1), ("neural", 2, 1)
    ]  # fmt: skip
    assert [pool.default_deadline_s for pool in settings.pools] == [120, None, 120]
    assert [pool.heartbeat_limit_s for pool in settings.pools] == [15, 60, 60]
    assert settings.lms["default"].model == "offline/knn"
    assert (settings.limits.header_bytes, settings.limits.message_bytes, settings.limits.nesting) == (2**16, 2**26, 128)
    assert (settings.faults, settings.log_level, settings.python_path) == (False, "info", ())


def test_a_small_machine_still_has_every_pool() -> None:
    small = Machine(cores=1, gpus=0)
    assert [kind.on(small).size for kind in (GENERAL, OPTIMIZER, NEURAL)] == [1, 1, 1]


def test_operations_have_a_home(load_text: Load) -> None:
    fleet = load_text().fleet
    assert [fleet.home_of(name) for name in ("embed", "optimize", "echo", "dspy.Predict")] == [
        "neural", "optimizer", "general", "general"
    ]  # fmt: skip
    with pytest.raises(KeyError):
        fleet.pool("nobody")


def test_this_machine_has_cores() -> None:
    assert this_machine().cores >= 1
    assert this_machine().gpus >= 0


def test_default_directories_come_from_the_environment(load_text: Load, tmp_path: Path) -> None:
    settings = load_text(environ={"HOME": "/home/someone", "XDG_RUNTIME_DIR": str(tmp_path)})
    assert settings.data_dir == Path("/home/someone/.local/share/dspool")
    assert settings.run_dir == tmp_path / "dspool"


# --- what can be set --------------------------------------------------------------------------------


def test_every_pool_key_arrives(load_text: Load) -> None:
    text = """
    pools:
      general:
        size: 3
        slots: 4
        prefetch: 5
        launcher: spawn
        max_queue: 0
        default_deadline_s: 1.5
        heartbeat_interval_s: 0.5
        heartbeat_limit_s: 7
        grace_s: 2
        memory_limit_mb: 700
        max_requests: 800
        max_age_s: 900
        restart: {type: transient, max_restarts: 1, window_s: 2, backoff_s: [0.5, 8]}
        python: /bin/sh
        env: {FOO: bar}
    """
    found = pool(load_text(text))
    assert (found.size, found.slots, found.prefetch, found.max_queue) == (3, 4, 5, 0)
    assert (found.default_deadline_s, found.grace_s) == (1.5, 2)
    assert (found.heartbeat_interval_s, found.heartbeat_limit_s) == (0.5, 7)
    assert (found.memory_limit_mb, found.max_requests, found.max_age_s) == (700, 800, 900)
    assert (found.restart.max_restarts, found.restart.window_s, found.restart.backoff_s) == (1, 2, (0.5, 8))
    assert found.restart.type == "transient"
    assert (found.python, found.env) == ("/bin/sh", {"FOO": "bar"})
    assert (found.launcher, found.preload) == ("spawn", ())


def test_workers_are_forked_unless_told_otherwise(load_text: Load) -> None:
    assert pool(load_text("")).launcher == "zygote"
    assert pool(load_text("pools: {general: {preload: [mypkg.models, os]}}")).preload == ("mypkg.models", "os")


def test_what_is_not_said_keeps_its_default(load_text: Load) -> None:
    found = load_text("pools: {optimizer: {restart: {max_restarts: 1}, size: 0}, batch: {slots: 2}}")
    assert pool(found, "optimizer").restart.window_s == 30
    assert (pool(found, "optimizer").size, pool(found, "optimizer").heartbeat_limit_s) == (0, 60)
    # A pool of another name starts from general's defaults.
    assert pool(found, "batch") == replace(GENERAL.on(MACHINE), name="batch", slots=2)
    assert [pool.name for pool in found.pools] == ["general", "optimizer", "neural", "batch"]


def test_null_means_the_default_but_for_a_deadline_none(load_text: Load) -> None:
    text = "pools:\n  general: {slots: null, default_deadline_s: null, restart: null}\n  neural:\nlms:\nlimits:\n"
    found = load_text(text)
    assert pool(found).default_deadline_s is None
    assert pool(found).slots == 8
    assert pool(found, "neural") == NEURAL.on(MACHINE)


def test_language_models(load_text: Load) -> None:
    text = """
    lms:
      gpt: {model: openai/gpt-4o-mini, api_key: "${KEY}", api_base: "http://localhost:1/v1",
            params: {temperature: 0, stop: [a]}, timeout_s: 5, max_concurrency: 2}
    """
    settings = load_text(text, {"KEY": "12345"})
    assert settings.lms["gpt"].for_worker() == {
        "model": "openai/gpt-4o-mini", "api_key": "12345", "api_base": "http://localhost:1/v1",
        "params": {"temperature": 0, "stop": ["a"]}, "timeout_s": 5, "max_concurrency": 2,
    }  # fmt: skip
    assert settings.lms["default"].for_worker() == {
        "model": "offline/knn", "api_key": None, "api_base": None, "params": {}, "timeout_s": 60, "max_concurrency": 32
    }  # fmt: skip
    assert load_text("lms: {default: {model: a/b}}").lms["default"].model == "a/b"


def test_paths_are_meant_from_where_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    (tmp_path / "conf" / "d.yaml").write_text("python_path: [lib, ~/x, /abs]\ndata_dir: data\nrun_dir: ../run\n")
    settings = load("../conf/d.yaml", environ={"HOME": "/home/someone"})
    assert settings.python_path == (str(tmp_path / "conf" / "lib"), "/home/someone/x", "/abs")
    assert (settings.data_dir, settings.run_dir) == (tmp_path / "conf" / "data", tmp_path / "run")
    environ = {"DSPOOL_CONFIG": str(tmp_path / "conf" / "d.yaml"), "DSPOOL_PYTHON_PATH": "one:/two"}
    settings = load(environ=environ, overrides={"data_dir": Path("mine")})
    assert settings.python_path == (str(tmp_path / "cwd" / "one"), "/two")
    assert settings.data_dir == tmp_path / "cwd" / "mine"
    assert settings.file == tmp_path / "conf" / "d.yaml"


def test_an_interpreter_is_looked_up(load_text: Load, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python9"
    python.touch(mode=0o700)
    text = "pools: {general: {python: python9}, neural: {python: bin/python9}}"
    found = load_text(text, {"PATH": str(tmp_path / "bin")})
    assert pool(found).python == pool(found, "neural").python == str(python)
    python.unlink()
    assert problems_of(lambda: load_text(text, {"PATH": "/bin"})) == [
        ("dspool.yaml:1", "pools.general.python", "no such interpreter: python9"),
        ("dspool.yaml:1", "pools.neural.python", f"no such interpreter: {python}"),
    ]


# --- sources and their order ------------------------------------------------------------------------


def test_environment_beats_the_file_and_overrides_beat_both(load_text: Load) -> None:
    text = "pools: {general: {size: 1, slots: 1, grace_s: 1}}\nlog_level: debug"
    environ = {"DSPOOL_POOLS__GENERAL__SLOTS": "2", "DSPOOL_POOLS__GENERAL__GRACE_S": "2", "DSPOOL_LOG_LEVEL": "error"}
    settings = load_text(text, environ, pools={"general": {"grace_s": 3}})
    assert (pool(settings).size, pool(settings).slots, pool(settings).grace_s) == (1, 2, 3)
    assert settings.log_level == "error"


def test_environment_values_have_the_type_of_their_place(load_text: Load) -> None:
    environ = {
        "DSPOOL_FAULTS": "true",
        "DSPOOL_POOLS__GENERAL__SIZE": "auto",
        "DSPOOL_POOLS__GENERAL__RESTART__BACKOFF_S": "[1, 2]",
        "DSPOOL_POOLS__GENERAL__ENV__Some__Name": "0123",
        "DSPOOL_LMS__GPT__MODEL": "a/b",
        "DSPOOL_LMS__GPT__API_KEY": "000",
        "DSPOOL_LMS__GPT__PARAMS": "{temperature: 1}",
        "DSPOOL_LOG_LEVEL": "",
        "DSPOOL_ENDPOINT": "ipc:///somewhere",
        "DSPOOL_SERVICE_HOST": "10.0.0.1",
    }
    settings = load_text("", environ)
    assert settings.faults is True
    assert pool(settings).size == 8
    assert pool(settings).restart.backoff_s == (1, 2)
    assert pool(settings).env == {"Some__Name": "0123"}
    assert settings.lms["gpt"].for_worker()["api_key"] == "000"
    assert settings.lms["gpt"].params == {"temperature": 1}
    assert settings.log_level == "info"


def test_bad_environment(load_text: Load) -> None:
    environ = {
        "DSPOOL_POOLS__GENERAL__SLOTS": "many",
        "DSPOOL_POOLS__GENERAL__SISE": "4",
        "DSPOOL_LOGLEVEL": "info",
        "DSPOOL_LIMITS": "3",
        "DSPOOL_LIMITS__NESTING": "9",
        "DSPOOL_FAULTS": "[",
    }
    assert problems_of(lambda: load_text("pools:\n  general:\n    slots: 2\n", environ)) == [
        ("DSPOOL_FAULTS", "faults", "its value is not YAML"),
        ("DSPOOL_LIMITS", "limits", "must be a mapping of keys to values, got 3"),
        ("DSPOOL_LIMITS__NESTING", "limits.nesting", "DSPOOL_LIMITS gives limits another value"),
        ("DSPOOL_LOGLEVEL", "loglevel", "unknown key; did you mean 'log_level'?"),
        ("DSPOOL_POOLS__GENERAL__SISE", "pools.general.sise", "unknown key; did you mean 'size'?"),
        ("DSPOOL_POOLS__GENERAL__SLOTS", "pools.general.slots", "must be a valid integer, got 'many'"),
    ]


def test_references_to_the_environment(load_text: Load) -> None:
    text = """
    pools:
      general:
        size: ${A:-auto}
        slots: ${N}
        grace_s: "${N}"
        env: {X: "a${N}b${MISSING:-c}", Y: '$${N} $N', Z: "${EMPTY:-e}${EMPTY}"}
    lms:
      a:
        model: a/${N}
        api_key: ${N}
        params:
          number: ${N}
          text: "${N}"
    """
    settings = load_text(text, {"N": "5", "EMPTY": ""}, data_dir="/d/${N}")
    assert (pool(settings).size, pool(settings).slots, pool(settings).grace_s) == (8, 5, 5)
    assert pool(settings).env == {"X": "a5bc", "Y": "${N} $N", "Z": "e"}
    assert settings.lms["a"].params == {"number": 5, "text": "5"}
    assert settings.lms["a"].for_worker()["api_key"] == "5"
    assert settings.data_dir == Path("/d/5")


def test_bad_references(load_text: Load) -> None:
    text = "lms:\n  a: {model: a/b, api_key: '${NOPE}'}\n  b:\n    model: ${x-y}\n"
    found = problems_of(lambda: load_text(text, {}, run_dir="${GONE}"))
    assert [(where, path) for where, path, _ in found] == [
        ("dspool.yaml:2", "lms.a.api_key"), ("dspool.yaml:4", "lms.b.model"), ("override", "run_dir")
    ]  # fmt: skip
    assert found[0][2].startswith("environment variable NOPE is not set")
    assert "must be ${NAME} or ${NAME:-default}" in found[1][2]
    [(where, _, message)] = problems_of(lambda: load_text("faults: true\nlimits: {nesting: ${N}}"))
    assert where == "dspool.yaml:2"
    assert message.endswith("between { and } a ${NAME} needs quotes")


def test_overrides_travel_as_json(load_text: Load) -> None:
    overrides = {"pools": {"general": {"size": 2, "restart": {"backoff_s": (1, 2)}}}, "faults": True}
    assert load_text("", None, **overrides) == load_text("", None, **json.loads(json.dumps(overrides)))


@pytest.mark.parametrize(
    ("overrides", "path", "message"),
    [
        ({"pool": {}}, "pool", "unknown key; did you mean 'pools'?"),
        ({"lms": {"x": object()}}, "lms.x", "must be plain data, got a value of type object"),
        ({"pools": {1: {}}}, "pools", "keys must be text, got 1"),
        ({"pools": {"general": {"colour": {}}}}, "pools.general.colour", "unknown key (known: size, slots"),
        ({"data_dir": 3}, "data_dir", "must be text"),
    ],
)
def test_bad_overrides(load_text: Load, overrides: dict[str, Any], path: str, message: str) -> None:
    [(where, found_path, found)] = problems_of(lambda: load_text("", None, **overrides))
    assert (where, found_path) == ("override", path)
    assert found.startswith(message)


def test_overrides_without_an_end(load_text: Load) -> None:
    endless: dict[str, Any] = {}
    endless["params"] = endless
    assert "nested too deeply" in str(problems_of(lambda: load_text("", None, lms={"a": endless})))


# --- what is wrong, where, and what was meant -------------------------------------------------------


def test_every_problem_is_told_at_once_with_its_line(load_text: Load) -> None:
    text = """pools:
  general:
    sise: 4
    slots: true
  neural:
    size: 99999
limit: 3
log_level: trace
lms:
  gpt:
    timeout_s: .nan
"""
    assert problems_of(lambda: load_text(text)) == [
        ("dspool.yaml:3", "pools.general.sise", "unknown key; did you mean 'size'?"),
        ("dspool.yaml:4", "pools.general.slots", "must be a valid integer, got True"),
        ("dspool.yaml:6", "pools.neural.size", SIZE + ", got 99999"),
        ("dspool.yaml:7", "limit", "unknown key; did you mean 'limits'?"),
        ("dspool.yaml:8", "log_level", "must be 'debug', 'info', 'warning' or 'error', got 'trace'"),
        ("dspool.yaml:10", "lms.gpt.model", "is required"),
        ("dspool.yaml:11", "lms.gpt.timeout_s", "must be a finite number, got nan"),
    ]


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("pools: {general: {size: true}}", "pools.general.size"),
        ("pools: {general: {size: 1.5}}", "pools.general.size"),
        ("pools: {general: {size: -1}}", "pools.general.size"),
        ("pools: {general: {size: '4'}}", "pools.general.size"),
        ("pools: {general: {size: [1, 8]}}", "pools.general.size"),
        ("pools: {general: {size: }}", "pools.general.size"),
        ("pools: {general: {slots: 0}}", "pools.general.slots"),
        ("pools: {general: {prefetch: 257}}", "pools.general.prefetch"),
        ("pools: {general: {launcher: fork}}", "pools.general.launcher"),
        ("pools: {general: {preload: [a-b]}}", "pools.general.preload[0]"),
        ("pools: {general: {preload: [a], launcher: spawn}}", "pools.general.preload"),
        ("pools: {general: {preload: [a], python: /bin/sh}}", "pools.general.preload"),
        ("pools: {general: {max_queue: -1}}", "pools.general.max_queue"),
        ("pools: {general: {default_deadline_s: 0}}", "pools.general.default_deadline_s"),
        ("pools: {general: {default_deadline_s: .inf}}", "pools.general.default_deadline_s"),
        ("pools: {general: {grace_s: true}}", "pools.general.grace_s"),
        ("pools: {general: {grace_s: soon}}", "pools.general.grace_s"),
        ("pools: {general: {heartbeat_limit_s: 1}}", "pools.general.heartbeat_limit_s"),
        ("pools: {general: {restart: {backoff_s: [2, 1]}}}", "pools.general.restart.backoff_s"),
        ("pools: {general: {restart: {backoff_s: [1]}}}", "pools.general.restart.backoff_s"),
        ("pools: {general: {restart: {type: always}}}", "pools.general.restart.type"),
        ("pools: {general: {env: {A: 1}}}", "pools.general.env.A"),
        ("pools: {general: {env: {A=: x}}}", "pools.general.env.A="),
        ("pools: {general: []}", "pools.general"),
        ("pools: 3", "pools"),
        ("pools: {Big Pool: {}}", "pools.Big Pool"),
        ("lms: {gpt: {model: gpt}}", "lms.gpt.model"),
        ("lms: {gpt: {model: a/b, api_base: localhost}}", "lms.gpt.api_base"),
        ("lms: {gpt: {model: a/b, params: {x: .inf}}}", "lms.gpt.params"),
        ("lms: {gpt: {model: a/b, params: {x: 2020-01-01}}}", "lms.gpt.params"),
        ("lms: {gpt: {model: a/b, rpm: 5}}", "lms.gpt.rpm"),
        ("lms: {gpt: {model: a/b, max_concurrency: 0}}", "lms.gpt.max_concurrency"),
        ("limits: {header_bytes: 70000}", "limits.header_bytes"),
        ("limits: {message_bytes: 1000}", "limits.message_bytes"),
        ("limits: {message_bytes: 2147483648}", "limits.message_bytes"),
        ("limits: {nesting: 7}", "limits.nesting"),
        ("limits: {nesting: 257}", "limits.nesting"),
        ("python_path: lib", "python_path"),
        ("python_path: [1]", "python_path[0]"),
        ("data_dir: ''", "data_dir"),
        ("faults: 1", "faults"),
        ("log_level: INFO", "log_level"),
        ("session: {}", "session"),
        ("sessions: {ttl_s: 0}", "sessions.ttl_s"),
        ("sessions: {affinity: strict}", "sessions.affinity"),
        ("yes: 1", ""),
        ("faults: false\nfaults: false", "faults"),
        ("{faults: false, faults: true}", "faults"),
        ("pools: &a {general: *a}", "pools.general"),
        ("pools: !!set {general}", "pools"),
        ("faults: !!python/name:os.system ''", "faults"),
        ("pools: {<<: 3}", "pools"),
        ("limits: {nesting: 2020-99-99}", "limits.nesting"),
        (f"limits: {{nesting: {'9' * 5000}}}", "limits.nesting"),
        ("- a", ""),
        ("text", ""),
        ("a: [", ""),
        ("a: 1\n---\nb: 2", ""),
        ("a: \x07", ""),
        ("a: " + "[" * 100_000, ""),
    ],
)
def test_each_mistake_is_one_problem_at_its_place(load_text: Load, text: str, path: str) -> None:
    [(where, found, message)] = problems_of(lambda: load_text(text))
    assert found == path
    assert where.startswith("dspool.yaml")
    assert len(message) < 300


def test_a_file_of_aliases_stays_small(load_text: Load) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    found = problems_of(lambda: load_text("\n".join(lines)))
    assert len([message for _, _, message in found if "nested aliases" in message]) == 1


def test_yaml_merges_and_anchors_work(load_text: Load) -> None:
    text = """
    pools:
      general: &base {slots: 3, grace_s: 9}
      neural: {<<: *base, slots: 4}
      more: {<<: *base}
      again: *base
    """
    settings = load_text(text)
    found = {pool.name: (pool.slots, pool.grace_s) for pool in settings.pools if pool.name != "optimizer"}
    assert found == {"general": (3, 9), "neural": (4, 9), "more": (3, 9), "again": (3, 9)}


@pytest.mark.parametrize("content", [b"a: \xff", b"#" * (1024 * 1024 + 1)])
def test_files_that_are_no_text(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.yaml").write_bytes(content)
    [(where, _, _)] = problems_of(lambda: load(tmp_path / "x.yaml", environ={}))
    assert where.startswith(str(tmp_path / "x.yaml"))


def test_a_named_file_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(environ={}).file is None
    absent = problems_of(lambda: load("absent.yaml", environ={}))
    assert absent == [("absent.yaml", "", "cannot be read: No such file or directory")]
    assert problems_of(lambda: load(environ={"DSPOOL_CONFIG": "absent.yaml"})) == absent
    assert problems_of(lambda: load(tmp_path, environ={}))[0][2] == "cannot be read: Is a directory"


# --- sizes with bounds ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "environ", "size"),
    [
        ("{min: 2, max: 8}", {}, (2, 8)),
        ("{max: 8}", {}, (1, 8)),
        ("{min: 3, max: 3}", {}, (3, None)),
        ("4", {}, (4, None)),
        ("auto", {}, (8, None)),
        ("{min: 2, max: 8}", {"MAX": "4"}, (2, 4)),
        ("{min: 2, max: 8}", {"MIN": "3", "MAX": "4"}, (3, 4)),
        ("4", {"MAX": "6"}, (1, 6)),
    ],
)
def test_a_size_is_auto_a_number_or_bounds(
    load_text: Load, text: str, environ: dict[str, str], size: tuple[int, int | None]
) -> None:
    variables = {f"DSPOOL_POOLS__GENERAL__SIZE__{name}": value for name, value in environ.items()}
    found = pool(load_text(f"pools: {{general: {{size: {text}}}}}", variables))
    assert (found.size, found.max_size) == size


def test_bounds_come_from_one_variable_or_an_override_too(load_text: Load) -> None:
    found = pool(load_text("", {"DSPOOL_POOLS__GENERAL__SIZE": "{min: 1, max: 3}"}))
    assert (found.size, found.max_size) == (1, 3)
    found = pool(load_text("pools: {general: {size: {min: 2, max: 8}}}", pools={"general": {"size": {"max": 5}}}))
    assert (found.size, found.max_size) == (2, 5)


@pytest.mark.parametrize("text", ["size: 1:8", "max_queue: 1:30", "grace_s: 1:30.5"])
def test_nothing_is_a_number_of_base_60(load_text: Load, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(f"pools:\n  general: {{{text}}}\n")
    assert text.partition(": ")[2] in str(caught.value)
    variable = f"DSPOOL_POOLS__GENERAL__{text.partition(':')[0].upper()}"
    with pytest.raises(ConfigError):
        load_text("", {variable: text.partition(": ")[2]})


def test_every_mistake_in_bounds_is_told_with_its_line(load_text: Load) -> None:
    text = """pools:
  general:
    size:
      min: 0
      max: '8'
  optimizer:
    size:
      mn: 1
  neural:
    size:
      min: 4
      max: 2
  more:
    size: {min: 1, max: 1025}
"""
    assert problems_of(lambda: load_text(text)) == [
        ("dspool.yaml:4", "pools.general.size.min", "must be greater than or equal to 1, got 0"),
        ("dspool.yaml:5", "pools.general.size.max", "must be a valid integer, got '8'"),
        ("dspool.yaml:7", "pools.optimizer.size.max", "is required"),
        ("dspool.yaml:8", "pools.optimizer.size.mn", "unknown key; did you mean 'min'?"),
        ("dspool.yaml:12", "pools.neural.size.max", "must not be below min (4), got 2"),
        ("dspool.yaml:14", "pools.more.size.max", "must be less than or equal to 1024, got 1025"),
    ]


def test_a_variable_that_does_not_fit_the_files_bounds(load_text: Load) -> None:
    name = "DSPOOL_POOLS__GENERAL__SIZE__MAX"
    assert problems_of(lambda: load_text("pools: {general: {size: {min: 2, max: 8}}}", {name: "1"})) == [
        (name, "pools.general.size.max", "must not be below min (2), got 1")
    ]


# --- secrets, showing, schema -----------------------------------------------------------------------

SECRET = "sk-abcdef"
WITH_SECRETS = f"""
lms:
  gpt: {{model: a/b, api_key: {SECRET}, api_base: "https://me:{SECRET}@host/v1",
        params: {{extra_headers: {{Authorization: "Bearer {SECRET}"}}, max_tokens: 5, tools: [{{token: {SECRET}}}]}}}}
pools: {{general: {{env: {{SOME_SECRET: {SECRET}, PLAIN: x}}}}}}
"""


def test_no_secret_is_shown(load_text: Load) -> None:
    settings = load_text(WITH_SECRETS)
    shown = show(settings)
    assert SECRET not in json.dumps(shown)
    assert SECRET not in f"{settings.lms['gpt'].api_key!r} {settings.lms['gpt'].api_key}"
    assert shown["lms"]["gpt"]["api_key"] == "****"
    assert shown["lms"]["gpt"]["api_base"] == "https://****@host/v1"
    assert shown["lms"]["gpt"]["params"]["max_tokens"] == 5
    assert shown["pools"]["general"]["env"] == {"SOME_SECRET": "****", "PLAIN": "x"}


def test_no_problem_shows_a_secret(load_text: Load) -> None:
    number = "987654321"
    text = f"lms: {{a: {{model: a/b, api_key: {number}, params: {{token: [{number}], x: .inf}}}}}}\n"
    text += f"pools: {{general: {{env: {{A: {number}}}}}}}"
    with pytest.raises(ConfigError) as caught:
        load_text(text)
    assert len(caught.value.problems) == 3
    assert number not in str(caught.value) + repr(caught.value.details)


def test_what_is_shown_can_be_loaded_again(load_text: Load) -> None:
    text = "pools: {general: {prefetch: 3, size: {min: 2, max: 8}}, more: {default_deadline_s: null}}"
    settings = load_text(text, {"HOME": "/h"})
    assert show(settings)["pools"]["general"]["size"] == {"min": 2, "max": 8}
    again = load_text("", {}, **show(settings))
    assert (again.fleet, again.lms, again.limits, again.run_dir, again.data_dir) == (
        settings.fleet, settings.lms, settings.limits, settings.run_dir, settings.data_dir
    )  # fmt: skip


def test_settings_are_frozen_and_picklable(load_text: Load) -> None:
    settings = load_text(WITH_SECRETS)
    with pytest.raises(AttributeError):
        settings.faults = True  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_the_schema_knows_what_the_reader_knows() -> None:
    described = schema()
    assert set(described["properties"]) == set(keys_at(()))
    assert set(described["$defs"]["PoolModel"]["properties"]) == set(keys_at(("pools", "any")))
    assert described["$defs"]["PoolModel"]["properties"]["size"]["anyOf"][0] == {"const": "auto"}
    assert set(described["$defs"]["PoolModel"]["properties"]["size"]["anyOf"][2]["properties"]) == {"min", "max"}
    assert keys_at(("pools", "any", "size")) == ["min", "max"]
    assert described["additionalProperties"] is False
    json.dumps(described)
