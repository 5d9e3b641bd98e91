"""What the neural pool is configured by: GPUs, batches, the embedder."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge.protocol.errors import BridgeError
from bridge.protocol.worker_spec import WorkerSpec
from bridge.worker.embedding import Embedder
from bridge.worker.embedding.absent import Absent
from bridge.worker.embedding.hashing import HashEmbedder
from bridge.worker.embedding.local import LocalModel, folder_of
from bridge.worker.embedding.provider import ProviderEmbedder
from orchestrator import errors
from orchestrator.config import Settings, load
from orchestrator.config.load import this_machine
from orchestrator.config.view import show
from orchestrator.coordinator.births import device_of, environment
from pools.config import BatchConfig, Machine
from pools.general import GENERAL
from pools.neural import NEURAL

PLAIN = Machine(cores=2, gpus=0)


def settings(machine: Machine = PLAIN, **overrides: Any) -> Settings:
    return load(environ={"HOME": "/h"}, overrides=overrides, machine=machine)


# --- GPUs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("devices", "visible", "expected"),
    [
        ((), None, ()),
        (("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"), None, ("0", "1")),
        (("nvidia3",), None, ("0",)),  # one of a larger machine: CUDA counts what is there
        (("nvidia0", "nvidia1"), "1", ("1",)),
        ((), "2,GPU-1a2b, MIG-9 ", ("2", "GPU-1a2b", "MIG-9")),
        (("nvidia0",), "", ()),
        (("nvidia0",), "-1", ()),
        ((), "0,1,-1,2", ("0", "1")),
        ((), "0,0", ("0",)),
        (("nvidia0",), "NoDevFiles", ()),
    ],
)
def test_gpus_are_those_that_cuda_would_see(
    tmp_path: Path, devices: tuple[str, ...], visible: str | None, expected: tuple[str, ...]
) -> None:
    for name in devices:
        (tmp_path / name).touch()
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    found = this_machine(environ, tmp_path)
    assert (found.gpus, found.devices) == (len(expected), expected)


def test_each_worker_of_the_neural_pool_has_a_gpu_of_its_own() -> None:
    machine = Machine(cores=4, gpus=2, devices=("3", "GPU-9"))
    pool = NEURAL.on(machine)
    assert pool.size == 2
    # A place keeps its GPU whatever its incarnation; more workers than GPUs share them by turns.
    assert [device_of(pool, place)["CUDA_VISIBLE_DEVICES"] for place in (1, 2, 3)] == ["3", "GPU-9", "3"]
    assert device_of(NEURAL.on(Machine(cores=4, gpus=0)), 1) == {}
    assert device_of(GENERAL.on(machine), 1) == {}
    assert NEURAL.on(Machine(cores=4, gpus=2)).devices == ("0", "1")


def test_an_env_of_the_pool_wins_over_its_gpu() -> None:
    pools = {"neural": {"env": {"CUDA_VISIBLE_DEVICES": "7"}}}
    found = settings(Machine(cores=2, gpus=1), pools=pools)
    pool = found.fleet.pool("neural")
    env = environment(found, {**device_of(pool, 1), **pool.env}, {"CUDA_VISIBLE_DEVICES": "0"})
    assert env["CUDA_VISIBLE_DEVICES"] == "7"


# --- batches --------------------------------------------------------------------------------------------


def test_a_pool_that_batches_holds_two_batches_ahead() -> None:
    found = settings(pools={"neural": {"batch": {"max_items": 16}}, "general": {"batch": {}}, "mine": {}})
    neural, general, mine = (found.fleet.pool(name) for name in ("neural", "general", "mine"))
    assert (neural.batch, neural.prefetch) == (BatchConfig(max_items=16, max_wait_ms=5.0), 32)
    assert (general.batch, general.prefetch) == (BatchConfig(), 128)
    assert (mine.batch, mine.prefetch) == (None, None)
    assert settings().fleet.pool("neural").prefetch == 128
    chosen = settings(pools={"neural": {"batch": {"max_wait_ms": 1}, "prefetch": 3}}).fleet.pool("neural")
    assert (chosen.batch, chosen.prefetch) == (BatchConfig(max_wait_ms=1.0), 3)


@pytest.mark.parametrize("batch", [{"max_items": 0}, {"max_items": 5000}, {"max_wait_ms": -1}, {"size": 3}])
def test_bad_batches(batch: dict[str, Any]) -> None:
    with pytest.raises(errors.ConfigError, match=r"pools\.neural\.batch\."):
        settings(pools={"neural": {"batch": batch}})


# --- the embedder ---------------------------------------------------------------------------------------


def test_the_embedder_is_the_built_in_one_unless_configured() -> None:
    assert settings().embedder.for_worker()["model"] == "offline/hash"
    assert settings().embedder.dim == 256
    assert settings(embedder={"dim": 64}).embedder.dim == 64
    assert settings(embedder={"model": "openai/text-embedding-3-small"}).embedder.dim is None


@pytest.mark.parametrize(
    ("embedder", "said"),
    [
        ({"dim": 8}, "embedder.dim"),
        ({"dim": 5000}, "embedder.dim"),
        ({"model": "offline/mini"}, "must be offline/hash"),
        ({"model": "gpt"}, "embedder.model"),
        ({"model": "openai/x", "apikey": "k"}, "did you mean 'api_key'"),
    ],
)
def test_bad_embedders(embedder: dict[str, Any], said: str) -> None:
    with pytest.raises(errors.ConfigError, match=said):
        settings(embedder=embedder)


def test_the_embedders_key_is_nowhere_but_in_the_workers_memory() -> None:
    found = settings(embedder={"model": "openai/x", "api_key": "sk-1234567890"})
    assert found.embedder.for_worker()["api_key"] == "sk-1234567890"
    assert environment(found, {}, {"OPENAI_API_KEY": "sk-1234567890", "A": "b"}).get("OPENAI_API_KEY") is None
    assert show(found)["embedder"]["api_key"] == "****"
    assert "sk-1234567890" not in repr(found)


def spec(pool: str = "neural", **embedder: Any) -> WorkerSpec:
    return WorkerSpec(
        endpoint="", run_id="", token=b"", worker_id="w", pool=pool, incarnation=0, slots=1, heartbeat_interval_s=1.0,
        message_bytes=1 << 20, nesting=32, lms={}, python_path=[], faults=False, log_level="info", cache_dir="",
        embedder=embedder,
    )  # fmt: skip


def test_which_embedder_a_worker_has() -> None:
    assert isinstance(Embedder.of(spec("general")), HashEmbedder)
    assert Embedder.of(spec("general", model="offline/hash", dim=32)).dimension() == 32
    assert isinstance(Embedder.of(spec(model="openai/text-embedding-3-small")), ProviderEmbedder)
    assert isinstance(Embedder.of(spec(model="sentence-transformers/all-MiniLM-L6-v2")), LocalModel)
    elsewhere = Embedder.of(spec("general", model="openai/text-embedding-3-small"))
    assert isinstance(elsewhere, Absent)
    for use in (lambda: elsewhere("x"), lambda: elsewhere([]), elsewhere.dimension):
        with pytest.raises(BridgeError, match="is held by the pool neural, not by general"):
            use()


@pytest.mark.parametrize("dim", [16, 100, 256, 4096])
def test_the_built_in_embedder_in_every_dimension(dim: int) -> None:
    vectors = HashEmbedder(dim).embed(["refund my invoice", "please refund the invoice", "a printer is on fire", ""])
    assert (vectors.shape, vectors.dtype) == ((4, dim), np.float32)
    assert np.allclose(np.linalg.norm(vectors[:3], axis=1), 1, atol=1e-5)
    assert not vectors[3].any()
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]


def test_an_embedder_is_called_like_a_dspy_embedder() -> None:
    embedder = HashEmbedder(16)
    assert embedder("x").shape == (16,)
    assert embedder(["x", "y"], batch_size=1).shape == (2, 16)
    assert embedder([]).shape == (0, 16)
    assert np.array_equal(embedder(["x", "y"])[0], embedder("x"))


def test_a_local_model_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)  # as if it were not installed
    with pytest.raises(BridgeError, match=r"pip install 'dspool\[neural\]'"):
        Embedder.of(spec(model="sentence-transformers/all-MiniLM-L6-v2"))("x")


def test_where_a_local_model_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "packed_model" / "weights" / "v1"
    inside.mkdir(parents=True)
    (tmp_path / "packed_model" / "__init__.py").touch()
    (inside / "modules.json").write_text("[]")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert folder_of("packed-model") == str(inside)
    assert folder_of(str(inside)) == str(inside)
    assert folder_of("all-MiniLM-L6-v2") == "all-MiniLM-L6-v2"
    assert folder_of("os") == "os"  # a module that holds no model
    assert os.path.isabs(folder_of(str(tmp_path)))
