from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dspy
import pytest
from dspy.utils.exceptions import ContextWindowExceededError, LMError

from bridge.protocol.errors import LM_ERROR, BridgeError
from bridge.worker.call import Call, CallStopped, current_call
from bridge.worker.lm import LanguageModels, translate
from tests.support.openai_server import Answer, OpenAIServer, Seen

KEY = "test-0f9e8d7c6b5a"
ANSWER = "[[ ## answer ## ]]\n{}\n\n[[ ## completed ## ]]"

Models = Callable[..., LanguageModels]


@pytest.fixture
def models() -> Iterator[Models]:
    made: list[LanguageModels] = []

    def make(server: OpenAIServer, **spec: Any) -> LanguageModels:
        spec = {"model": "openai/gpt-4o-mini", "api_key": KEY, "api_base": server.url, **spec}
        made.append(LanguageModels({"default": spec}))
        return made[-1]

    yield make
    for lms in made:
        lms.close()


def ask(lms: LanguageModels, question: str = "sky?", call: Call | None = None, **config: Any) -> str:
    token = current_call.set(call)
    try:
        with dspy.context(lm=lms.get(), disable_history=True):
            return str(dspy.Predict("question -> answer")(question=question, config=config).answer)
    finally:
        current_call.reset(token)


def stream_of(lms: LanguageModels, call: Call | None = None, *, asynchronous: bool = True) -> list[Any]:
    async def collect() -> list[Any]:
        with dspy.context(lm=lms.get(), disable_history=True):
            listener = dspy.streaming.StreamListener("answer")
            program = dspy.streamify(
                dspy.Predict("question -> answer"), stream_listeners=[listener], is_async_program=asynchronous
            )
            return [item async for item in program(question="sky?")]

    token = current_call.set(call)
    try:
        return asyncio.run(collect())
    finally:
        current_call.reset(token)


def error_of(lms: LanguageModels, **options: Any) -> BridgeError:
    with pytest.raises(LMError) as raised:
        ask(lms, **options)
    error = translate(raised.value)
    assert error is not None
    assert error.code == LM_ERROR
    assert KEY not in error.message
    assert KEY not in "".join(traceback.format_exception(raised.value))
    return error


def test_sync_and_async_programs_get_answers_and_are_counted(models: Models) -> None:
    with OpenAIServer() as server:
        lms = models(server, params={"temperature": 0.3})
        call = Call(1, 1, "test")
        assert ask(lms, call=call) == "blue"

        async def aask() -> str:
            current_call.set(call)
            with dspy.context(lm=lms.get()):
                return str((await dspy.Predict("question -> answer").acall(question="sky?")).answer)

        assert asyncio.run(aask()) == "blue"
        assert call.lm_calls == 2
        assert call.tokens > 50
        assert call.cost_usd is not None
        assert call.cost_usd > 0
        first = server.requests[0]
        assert first.path == "/v1/chat/completions"
        assert first.headers["authorization"] == f"Bearer {KEY}"
        assert (first.body["model"], first.body["temperature"]) == ("gpt-4o-mini", 0.3)


def test_an_unknown_model_has_no_price_and_a_local_server_needs_no_key(models: Models) -> None:
    with OpenAIServer() as server:
        call = Call(1, 1, "test")
        assert ask(models(server, model="openai/llama-3.2", api_key=None), call=call) == "blue"
        assert (call.lm_calls, call.cost_usd) == (1, None)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_streaming_sends_pieces_and_counts_once(models: Models, asynchronous: bool) -> None:
    words = "one two three four five six seven eight nine ten"
    with OpenAIServer(Answer(ANSWER.format(words))) as server:
        call = Call(1, 1, "test")
        *chunks, final = stream_of(models(server), call, asynchronous=asynchronous)
    assert len(chunks) > 3
    assert "".join(chunk.chunk for chunk in chunks).strip() == final.answer == words
    assert server.requests[0].body["stream"] is True
    assert call.lm_calls == 1
    assert call.tokens > 10


@pytest.mark.parametrize(
    ("answer", "kind", "retryable", "retry_after_s"),
    [
        (Answer("slow down", status=429, headers={"Retry-After": "7"}), "LMRateLimitError", True, 7.0),
        (Answer("oops", status=500), "LMServerError", True, None),
        (Answer(f"Incorrect API key provided: {KEY}", status=401), "LMAuthError", False, None),
        (Answer("no such model", status=404), None, False, None),
    ],
)
def test_failures_become_errors_that_decide(
    models: Models, answer: Answer, kind: str | None, retryable: bool, retry_after_s: float | None
) -> None:
    with OpenAIServer(answer) as server:
        call = Call(1, 1, "test")
        error = error_of(models(server), call=call)
        assert error.retryable is retryable
        assert error.details["status"] == answer.status
        assert error.details["retry_after_s"] == retry_after_s
        if kind is not None:
            assert error.details["type"] == kind
        assert len(server.requests) == 1, "retries are not made here"
        assert (call.lm_calls, call.tokens) == (1, 0)


def test_a_prompt_that_is_too_long_keeps_its_own_error(models: Models) -> None:
    text = "This model's maximum context length is 10 tokens"
    with OpenAIServer(Answer(text, status=400, code="context_length_exceeded")) as server:
        lms = models(server)
        with pytest.raises(ContextWindowExceededError) as raised:
            ask(lms)
    error = translate(raised.value)
    assert error is not None
    assert (error.retryable, error.details["type"]) == (False, "ContextWindowExceededError")


def test_a_server_that_is_not_there_is_retryable(models: Models) -> None:
    with OpenAIServer() as server:
        lms = models(server)
    error = error_of(lms)
    assert (error.retryable, error.details["type"]) == (True, "LMTransportError")


@pytest.mark.parametrize("streaming", [False, True])
def test_timeout_s_ends_a_hanging_request(models: Models, streaming: bool) -> None:
    with OpenAIServer(Answer(hang=True)) as server:
        lms = models(server, timeout_s=0.3)
        began = time.monotonic()
        with pytest.raises(LMError) as raised:
            stream_of(lms) if streaming else ask(lms)
        assert type(raised.value).__name__ == "LMTimeoutError"
        assert time.monotonic() - began < 5
        server.wait_idle()


def test_a_deadline_ends_a_hanging_request_and_its_connection(models: Models) -> None:
    with OpenAIServer(answers=[Answer(hang=True)]) as server:
        lms = models(server)
        began = time.monotonic()
        with pytest.raises(CallStopped) as stopped:
            ask(lms, call=Call(1, 1, "test", deadline=began + 0.3))
        assert stopped.value.error.code == "DEADLINE_EXCEEDED"
        assert 0.25 < time.monotonic() - began < 3
        server.wait_idle()
        assert ask(lms) == "blue"


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("why", ["CANCELLED", "DEADLINE_EXCEEDED"])
def test_a_stream_that_does_not_end_is_cut(models: Models, why: str, asynchronous: bool) -> None:
    # A word each 5 ms, for 20 s: no wait is ever long enough to look up from.
    with OpenAIServer(Answer(ANSWER.format("word " * 4000), latency_s=0.005)) as server:
        began = time.monotonic()
        call = Call(1, 1, "test", deadline=began + 0.3 if why == "DEADLINE_EXCEEDED" else None)
        timer = threading.Timer(0.3, call.cancel if why == "CANCELLED" else time.monotonic)
        timer.start()
        with pytest.raises(BaseException, match=r"cancelled|deadline|TaskGroup") as stopped:
            stream_of(models(server), call, asynchronous=asynchronous)
        timer.join()
        assert _stop_in(stopped.value).error.code == why
        assert 0.25 < time.monotonic() - began < 3
        server.wait_idle()


@pytest.mark.parametrize("mode", ["sync", "async", "stream"])
def test_a_cancelled_call_lets_go_of_its_request(models: Models, mode: str) -> None:
    with OpenAIServer(Answer(hang=True)) as server:
        lms = models(server)
        call = Call(1, 1, "test")

        def run() -> str:
            try:
                if mode == "sync":
                    ask(lms, call=call)
                elif mode == "stream":
                    stream_of(lms, call)
                else:
                    current_call.set(call)
                    with dspy.context(lm=lms.get()):
                        asyncio.run(dspy.Predict("question -> answer").acall(question="sky?"))
            except CallStopped as stopped:
                return stopped.error.code
            except BaseExceptionGroup as group:  # of the task group that streams
                return _stop_in(group).error.code
            return ""

        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(run)
            server.wait_for_requests(1)
            call.cancel()
            assert future.result(10) == "CANCELLED"
        server.wait_idle()


def _stop_in(exc: BaseException) -> CallStopped:
    """Return the CallStopped that was raised, by itself or within groups."""
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    assert isinstance(exc, CallStopped)
    return exc


def test_a_call_that_must_stop_sends_nothing(models: Models) -> None:
    with OpenAIServer() as server:
        call = Call(1, 1, "test")
        call.cancel()
        with pytest.raises(CallStopped):
            ask(models(server), call=call)
        assert server.requests == []


def test_max_concurrency_holds_for_all_threads_and_connections_are_kept(models: Models) -> None:
    with OpenAIServer(lambda seen: Answer(ANSWER.format(seen.headers["content-length"]), latency_s=0.02)) as server:
        lms = models(server, max_concurrency=3)
        barrier = threading.Barrier(8)

        def run(number: int) -> list[str]:
            barrier.wait(10)
            return [ask(lms, f"question {number}.{turn}") for turn in range(4)]

        with ThreadPoolExecutor(8) as pool:
            answers = [answer for found in pool.map(run, range(8)) for answer in found]
        assert len(answers) == len(server.requests) == 32
        assert server.peak == 3
        assert server.connections == 3


def test_a_caller_that_gives_up_waiting_for_a_permit_sends_nothing(models: Models) -> None:
    with OpenAIServer(Answer(hang=True)) as server:
        lms = models(server, max_concurrency=1)
        holder = Call(1, 1, "test")

        def hold() -> None:
            with pytest.raises(CallStopped):
                ask(lms, call=holder)

        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(hold)
            server.wait_for_requests(1)
            with pytest.raises(CallStopped):
                ask(lms, call=Call(2, 2, "test", deadline=time.monotonic() + 0.2))
            holder.cancel()
            future.result(10)
        assert len(server.requests) == 1


def test_rollouts_reach_the_provider_as_separate_requests(models: Models) -> None:
    def answer(seen: Seen) -> Answer:
        assert "rollout_id" not in seen.body
        return Answer(ANSWER.format("red"))

    with OpenAIServer(answer) as server:
        lms = models(server)
        with dspy.context(lm=lms.get(), max_trace_size=0):
            best = dspy.BestOfN(module=dspy.Predict("question -> answer"), N=3, reward_fn=lambda *_: 0.0, threshold=1.0)
            assert best(question="x").answer == "red"
        assert len(server.requests) == 3


def test_capabilities_are_those_of_the_route(models: Models) -> None:
    with OpenAIServer() as server:
        known, reference = models(server).get(), dspy.LM("openai/gpt-4o-mini", engine="lm15")
        assert known.supports_response_schema is reference.supports_response_schema is True
        assert known.supports_function_calling is reference.supports_function_calling is True
        assert known.supported_params == reference.supported_params
        unknown = models(server, model="openai/llama-3.2").get()
        assert unknown.supports_response_schema is False


def test_a_saved_program_holds_neither_key_nor_address(models: Models) -> None:
    with OpenAIServer() as server:
        lm = models(server).get()
        program = dspy.Predict("question -> answer")
        program.set_lm(lm)
        state = json.dumps(program.dump_state())
        assert KEY not in state
        assert server.url not in state
        assert KEY not in repr(vars(lm)) + repr(lm.engine.provider.route)
        assert program.deepcopy().lm.engine is lm.engine
        loaded = dspy.Predict("question -> answer")
        loaded.load_state(json.loads(state), allow_unsafe_lm_state=True)
        with pytest.raises(LMError, match="no credentials"):
            loaded(question="x")


def test_a_model_without_a_native_route_is_refused() -> None:
    with pytest.raises(BridgeError) as raised:
        LanguageModels({"odd": {"model": "nowhere/x", "api_key": KEY}}).get("odd")
    assert raised.value.code == LM_ERROR
    assert raised.value.details["path"] == "lms.odd.model"
    assert KEY not in raised.value.message


def test_closing_ends_what_runs_and_refuses_what_comes(models: Models) -> None:
    with OpenAIServer(Answer(hang=True)) as server:
        lms = models(server)
        with ThreadPoolExecutor(1) as pool:

            def hang() -> None:
                with pytest.raises(LMError):
                    ask(lms)

            future = pool.submit(hang)
            server.wait_for_requests(1)
            lms.close()
            future.result(10)
        with pytest.raises(LMError, match="closed"):
            ask(lms)
        lms.close()


def test_litellm_is_never_imported() -> None:
    with OpenAIServer() as server:
        script = f"""
import sys, threading, dspy
from bridge.worker.lm import LanguageModels
lms = LanguageModels({{"default": {{"model": "openai/gpt-4o-mini", "api_key": "k", "api_base": {server.url!r}}}}})
assert "lm-io" not in [thread.name for thread in threading.enumerate()]
with dspy.context(lm=lms.get()):
    print(dspy.Predict("question -> answer")(question="sky?").answer)
print("litellm" in sys.modules, "lm-io" in [thread.name for thread in threading.enumerate()])
lms.close()
print("lm-io" in [thread.name for thread in threading.enumerate()])
"""
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["blue", "False", "True", "False"], done.stderr
