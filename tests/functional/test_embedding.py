"""Embedding and batched operations through a coordinator: one worker per GPU, many callers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dspy
import numpy as np
import pytest
from dspy.retrievers.embeddings import Embeddings

from bridge.worker.embedding.hashing import HashEmbedder
from orchestrator import AsyncClient, Client, Orchestrator, errors

SCORES = str(Path(__file__).parents[1] / "support" / "programs" / "scores.py")
DIM = 64


@pytest.fixture(scope="module")
def orc() -> Iterator[Orchestrator]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-7f3a")  # whatever this machine has: as if it had these two
        pools = {"general": {"size": 1}, "optimizer": {"size": 0}}
        with Orchestrator(pools=pools, embedder={"model": "offline/hash", "dim": DIM}) as found:
            yield found


@pytest.fixture(scope="module")
def client(orc: Orchestrator) -> Client:
    return orc.client()


def test_vectors_are_those_of_the_embedder_in_one_process(client: Client) -> None:
    texts = [f"text number {number} of {'many ' * (number % 7)}" for number in range(700)]
    vectors = client.embed(texts)
    assert (vectors.shape, vectors.dtype) == ((700, DIM), np.float32)
    assert np.array_equal(vectors, HashEmbedder(DIM).embed(texts))
    assert client.embed([]).shape == (0, DIM)
    assert np.array_equal(client.embed(texts[:3], pool="general"), vectors[:3])


def test_callers_of_single_texts_get_each_their_own(orc: Orchestrator) -> None:
    expected = HashEmbedder(DIM).embed([f"caller {caller}, text {n}" for caller in range(8) for n in range(50)])

    def call(caller: int) -> list[Any]:
        with orc.client() as client:
            futures = [client.submit("embed", {"texts": [f"caller {caller}, text {n}"]}) for n in range(50)]
            return [future.result(30) for future in futures]

    with ThreadPoolExecutor(8) as threads:
        found = np.concatenate([vectors for answers in threads.map(call, range(8)) for vectors in answers])
    assert np.array_equal(found, expected)


def test_a_bad_text_is_named_and_fails_alone(client: Client) -> None:
    good = [client.submit("embed", {"texts": [f"good {n}"]}) for n in range(5)]
    with pytest.raises(errors.InvalidRequest, match=r"texts\[1\] must be a text, got int \(5\)") as caught:
        client.embed(["a", 5])  # type: ignore[list-item]
    assert caught.value.path == "texts[1]"
    assert all(future.result(30).shape == (1, DIM) for future in good)


# --- in the place of a dspy.Embedder ------------------------------------------------------------------


def test_the_embedder_of_a_client(client: Client) -> None:
    embedder = client.embedder(batch_size=7)
    assert embedder("one").shape == (DIM,)
    texts = [f"text {n}" for n in range(30)]
    assert np.array_equal(embedder(texts), HashEmbedder(DIM).embed(texts))
    assert np.array_equal(embedder(texts, batch_size=100)[4], embedder("text 4"))
    assert embedder([]).shape == (0, DIM)
    assert asyncio.run(embedder.acall(texts)).shape == (30, DIM)
    with pytest.raises(errors.InvalidRequest):
        client.embedder(batch_size=0)


def test_knn_and_retrieval_with_it_find_what_is_near(client: Client) -> None:
    corpus = ["the printer is on fire", "refund my invoice please", "where is the office in Zurich"]
    retriever = Embeddings(corpus, client.embedder(), k=1)
    assert retriever("refund of an invoice").passages == [corpus[1]]
    retriever.search_fn.close()  # its thread
    examples = [dspy.Example(question=text, answer=str(n)).with_inputs("question") for n, text in enumerate(corpus)]
    knn = dspy.KNN(k=1, trainset=examples, vectorizer=client.embedder())
    assert [near.answer for near in knn(question="a printer in fire")] == ["0"]


def test_the_embedder_of_an_async_client_is_awaited(orc: Orchestrator) -> None:
    async def run() -> Any:
        async with AsyncClient(orc.endpoint) as client:
            embedder = client.embedder(batch_size=5)
            with pytest.raises(errors.InvalidRequest, match="acall"):
                embedder("x")
            return await embedder.acall([f"text {n}" for n in range(12)]), await embedder.acall("text 3")

    vectors, one = asyncio.run(run())
    assert vectors.shape == (12, DIM)
    assert np.array_equal(vectors[3], one)


# --- batched operations ---------------------------------------------------------------------------------


def test_a_batched_function_gets_the_items_of_many(client: Client) -> None:
    client.deploy("lengths", f"{SCORES}:lengths", pool="neural")
    assert client.execute("lengths", "four") == (4, 1)  # its first call loads it
    texts = ["x" * n for n in range(64)]
    sizes = []
    for _ in range(2):  # each of both workers has had its first call by then
        found = list(client.map("lengths", texts, chunk=32))
        assert [length for length, _ in found] == list(range(64))
        sizes = [size for _, size in found]
    assert max(sizes) == 16
    client.deploy("halves", f"{SCORES}:halves", pool="neural")
    rows = list(client.map("halves", [2.0, 6.0]))
    assert [row.tolist() for row in rows] == [[1.0, 0.5], [3.0, 1.5]]


def test_a_bad_item_of_a_batched_function_fails_alone(client: Client) -> None:
    client.deploy("careful", f"{SCORES}:lengths", pool="neural")
    found = list(client.map("careful", ["a", 5, "ccc"], chunk=3, on_error="yield"))
    assert (found[0][0], found[2][0]) == (1, 3)
    assert isinstance(found[1], errors.RemoteError)
    assert (found[1].type, found[1].message) == ("TypeError", "object of type 'int' has no len()")


def test_a_batched_class_is_made_once_per_worker_and_each_worker_has_its_gpu(client: Client) -> None:
    client.deploy("model", f"{SCORES}:Model", pool="neural", config={"scale": 3})
    found = [client.execute("model", n) for n in range(40)]
    assert [one["scaled"] for one in found] == [3 * n for n in range(40)]
    # Where it was deployed it was made once more, to see that it can be.
    assert all(one["made"] <= 2 for one in found)
    assert {one["gpu"] for one in found} == {"5", "GPU-7f3a"}
    neural = [worker for worker in client.workers() if worker["pool"] == "neural"]
    assert len(neural) == 2
    general = client.execute("model", 1, pool="general")
    assert general["gpu"] == "5,GPU-7f3a"  # no worker of that pool has one of its own


def test_results_must_be_as_many_as_the_items(client: Client) -> None:
    client.deploy("forgetful", f"{SCORES}:forgetful", pool="neural")
    for _ in range(2):
        with pytest.raises(errors.RemoteError, match="forgetful returned 0 results for 1 items"):
            client.execute("forgetful", 1)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("lengths", {"config": {"a": 1}}, "is a function and takes no config"),
        ("lengths", {"state": {"a": 1}}, "it has no state to load"),
        ("Model", {"config": {"b": 1}}, r"cannot be made with config \['b'\]"),
        ("later", {}, "is async"),
        ("Silent", {}, "it has no __call__"),
    ],
)
def test_what_cannot_be_deployed(client: Client, name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(errors.InvalidRequest, match=said):
        client.deploy("bad", f"{SCORES}:{name}", pool="neural", **options)


def test_a_batched_function_that_connects_is_told_that_it_serves_many(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "asking.py"
    path.write_text(
        "from bridge.batched import batched\n"
        "from orchestrator import connect\n\n"
        "@batched()\n"
        "def asking(items):\n"
        "    with connect() as client:\n"
        "        return [client.execute('asking', item) for item in items]\n"
    )
    client.deploy("asking", f"{path}:asking", pool="general")
    for _ in range(2):  # its first call loads it
        with pytest.raises(errors.InvalidRequest, match="a @batched function serves many callers at once"):
            client.submit("asking", 1, deadline_s=10).result(20)
