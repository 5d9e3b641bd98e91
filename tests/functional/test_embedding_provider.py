"""An embedding model of a provider, through LiteLLM: what is asked, what comes back, what goes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from orchestrator import Client, Orchestrator, errors
from tests.support.openai_server import Answer, OpenAIServer, embedding_of
from tests.support.programs import nearest

KEY = "sk-secret-7f3a9b"
DIM = 16


@pytest.fixture(scope="module")
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer() as found:
        yield found


@pytest.fixture(scope="module")
def client(server: OpenAIServer) -> Iterator[Client]:
    embedder = {"model": "openai/text-embedding-3-small", "dim": DIM, "api_key": KEY, "api_base": server.url}
    pools = {"general": {"size": 1}, "optimizer": {"size": 0}, "neural": {"size": 1, "batch": {"max_items": 10}}}
    with Orchestrator(pools=pools, embedder={**embedder, "batch_size": 4, "timeout_s": 5.0}) as orc:
        yield orc.client()


def test_texts_go_to_the_provider_in_batches(client: Client, server: OpenAIServer) -> None:
    texts = [f"a text about {n} tunes" * (n + 1) for n in range(10)]
    vectors = client.embed(texts)
    assert vectors.dtype == np.float32
    assert np.array_equal(vectors, np.array([embedding_of(text, DIM) for text in texts], np.float32))
    assert [len(seen.body["input"]) for seen in server.requests] == [4, 4, 2]
    seen = server.requests[0]
    assert (seen.path, seen.headers["authorization"]) == ("/v1/embeddings", f"Bearer {KEY}")
    assert (seen.body["model"], seen.body["dimensions"]) == ("text-embedding-3-small", DIM)
    assert client.embed([]).shape == (0, DIM)
    assert len(server.requests) == 3


def test_tokens_of_the_provider_are_counted(client: Client) -> None:
    future = client.submit("embed", {"texts": ["one two", "three"]})
    future.result(30)
    assert future.meta is not None
    assert future.meta.tokens == 3


def test_a_provider_is_waited_for_no_longer_than_the_call_may_run(client: Client, server: OpenAIServer) -> None:
    before = len(server.requests)
    server.answer = Answer(hang=True)
    future = client.submit("embed", {"texts": ["x"]})
    server.wait_for_requests(before + 1)
    future.cancel()
    server.wait_idle(2.0)  # it would wait 5 s
    server.answer = Answer()
    with pytest.raises(errors.Cancelled):
        future.result(5)


@pytest.mark.parametrize(("status", "retryable"), [(401, False), (429, True), (500, True)])
def test_errors_of_the_provider_are_told_once_and_without_the_key(
    client: Client, server: OpenAIServer, status: int, retryable: bool
) -> None:
    before = len(server.requests)
    server.answer = Answer(f"the key {KEY} is not welcome", status=status)
    with pytest.raises(errors.LMError) as caught:
        client.embed(["x"])
    server.answer = Answer()
    assert len(server.requests) == before + 1
    assert (caught.value.status, caught.value.provider, caught.value.retryable) == (status, "openai", retryable)
    assert "is not welcome" in caught.value.message
    assert KEY not in f"{caught.value.message} {caught.value.details}"
    assert not any(KEY in line for worker in client.workers() for line in client.logs(worker["id"]))


def test_vectors_of_another_length_are_refused(client: Client, server: OpenAIServer) -> None:
    server.answer = Answer(dim=8)
    with pytest.raises(errors.LMError, match=r"of shape \(1, 8\) where \(1, 16\) was asked for"):
        client.embed(["x"])
    server.answer = Answer()


def test_a_program_of_another_pool_embeds_by_a_call_of_its_own(client: Client, server: OpenAIServer) -> None:
    path = Path(nearest.__file__ or "")
    client.deploy("nearest", f"{path}:Nearest", pool="general")
    before = len(server.requests)
    asked = "Who is on fire?"
    texts = [f"question: {text}" for text in (asked, *nearest.CORPUS)]
    question, *corpus = (np.array(embedding_of(text, DIM)) for text in texts)
    scores = [float(question @ one) for one in corpus]
    found = client.program("nearest")(question=asked).found
    assert found == nearest.CORPUS[scores.index(max(scores))]
    sent = [text for seen in server.requests[before:] for text in seen.body["input"]]
    assert sorted(sent) == sorted(texts)


def test_other_pools_do_not_hold_the_model(client: Client, server: OpenAIServer) -> None:
    before = len(server.requests)
    with pytest.raises(errors.InvalidRequest, match="is held by the pool neural, not by general"):
        client.embed(["x"], pool="general")
    knn = {"inputs": {"q": "tea"}, "options": {"k": 1, "trainset": [{"q": "tea", "a": "1"}, {"q": "nut", "a": "2"}]}}
    with pytest.raises(errors.InvalidRequest, match="is held by the pool neural, not by general"):
        client.execute("dspy.KNN", knn)
    assert len(server.requests) == before
    assert client.execute("dspy.KNN", knn, pool="neural")
    assert len(server.requests) > before
