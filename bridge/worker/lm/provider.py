"""Language models of providers, through DSPy's own asynchronous HTTP engine.

All provider I/O of a worker runs on one event loop. A request of a synchronous program is submitted there and
waited for no longer than its call may run.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Coroutine, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import dspy  # type: ignore[import-untyped]
from dspy import lm15
from dspy.clients.costs import estimate_cost  # type: ignore[import-untyped]
from dspy.clients.engines.lm15_engine import AsyncLM15Engine, timeouts_for  # type: ignore[import-untyped]
from dspy.lm15 import Request, Response, RouterConfig  # type: ignore[import-untyped]

from bridge.loop_thread import LoopThread
from bridge.worker.call import Call, current_call
from bridge.worker.lm.errors import redact_error
from bridge.worker.lm.waiting import aresult_of, result_of

T = TypeVar("T")

DEFAULT_TIMEOUT_S = 60.0
DEFAULT_MAX_CONCURRENCY = 32
# A server of one's own often wants no key, but the protocol has a place for one.
_NO_KEY = "none"
# The engine's own limit on silence is wider than ours, so that a timeout is reported as what it is.
_MARGIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Route:
    """Where requests go. timeout_s: for one answer, or for the next piece of a streamed one."""

    model: str
    api_key: str | None = field(default=None, repr=False)
    api_base: str | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S
    max_concurrency: int = DEFAULT_MAX_CONCURRENCY


class Provider:
    """The connections to one route, its concurrency limit, and what its model can do. Thread-safe.

    Raises lm15 errors if DSPy has no native engine for the model. Nothing is read from the environment. Without a
    loop it only describes the model: its requests raise lm15.NotConfiguredError.
    """

    def __init__(self, route: Route, loop: LoopThread | None) -> None:
        self.route = route
        self._loop = loop
        resolution = AsyncLM15Engine(RouterConfig(env={})).resolve(route.model)
        self._name, self._wire_model = resolution.provider, resolution.model
        key = route.api_key or (_NO_KEY if route.api_base else None)
        self._engine = AsyncLM15Engine(
            RouterConfig(
                env={},
                api_keys={self._name: key} if key else None,
                base_urls={self._name: route.api_base} if route.api_base else None,
                timeouts=timeouts_for(route.timeout_s + _MARGIN_S),
                max_connections=route.max_concurrency,
            )
        )
        self._permits = asyncio.Semaphore(route.max_concurrency)
        # What DSPy asks of an engine. Left unset it would read as "cannot", and DSPy would prompt differently.
        reference = dspy.LM(route.model, engine="lm15")
        self.supports_function_calling = reference.supports_function_calling
        self.supports_response_schema = reference.supports_response_schema
        self.supports_reasoning = reference.supports_reasoning
        self.supported_params = frozenset(reference.supported_params)

    def complete(self, request: Request) -> Response:
        """Answer one request, waiting on this thread."""
        call = _begin()
        return self._counted(call, request, result_of(call, self._submit(self._attempt(request, call))))

    async def acomplete(self, request: Request) -> Response:
        """Answer one request, waiting on the caller's event loop."""
        call = _begin()
        return self._counted(call, request, await aresult_of(call, self._submit(self._attempt(request, call))))

    def stream(self, request: Request) -> Iterator[Any]:
        """Answer in events. Leaving the iterator early ends the request."""
        call = _begin()
        events = self._events(request, call)
        try:
            while (event := result_of(call, self._submit(_next(events)))) is not None:
                self._count_end(call, request, event)
                _step(call)
                yield event
        finally:
            self._abandon(events)

    async def astream(self, request: Request) -> AsyncIterator[Any]:
        """Answer in events on the caller's event loop."""
        call = _begin()
        events = self._events(request, call)
        try:
            while (event := await aresult_of(call, self._submit(_next(events)))) is not None:
                self._count_end(call, request, event)
                _step(call)
                yield event
        finally:
            self._abandon(events)

    def close(self) -> None:
        """Close the connections."""
        if self._loop is not None and self._loop.started:
            with suppress(RuntimeError):  # the loop is closed already, and with it the connections
                self._loop.submit(self._engine.aclose()).result(_MARGIN_S)

    def _submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        if self._loop is not None:
            return self._loop.submit(work)
        work.close()
        text = "a saved program holds no credentials for its language model: choose a configured one by its name"
        raise lm15.NotConfiguredError(text, provider=self._name)

    async def _attempt(self, request: Request, call: Call | None) -> Response:
        async with self._permits:
            return await self._timed(self._engine.complete(request), call)

    async def _events(self, request: Request, call: Call | None) -> AsyncGenerator[Any, None]:
        async with self._permits:
            source = self._engine.stream(request)
            try:
                while (event := await self._timed(_next(source), call)) is not None:
                    yield event
            finally:
                await source.aclose()

    async def _timed(self, work: Awaitable[T], call: Call | None) -> T:
        """Await one step within the route's timeout. What it raises is an lm15 error without the key."""
        try:
            async with asyncio.timeout(self.route.timeout_s):
                return await work
        except TimeoutError:
            error: Exception = lm15.TimeoutError(
                f"no answer within timeout_s = {self.route.timeout_s:g}", provider=self._name
            )
        except Exception as exc:  # noqa: BLE001 - whatever it is, it goes on without the key
            redact_error(exc, [self.route.api_key] if self.route.api_key else [])
            error = exc
        if call is not None:
            call.used(lm_calls=1)
        raise error

    def _counted(self, call: Call | None, request: Request, response: Response) -> Response:
        if call is not None:
            cost_usd, _ = estimate_cost(
                response, provider=self._name, requested_model=self._wire_model, request=request
            )
            call.used(lm_calls=1, tokens=_tokens(response.usage), cost_usd=cost_usd)
        return response

    def _count_end(self, call: Call | None, request: Request, event: Any) -> None:
        if isinstance(event, lm15.StreamEndEvent):
            message = lm15.Message.assistant([lm15.TextPart("")])
            finish, usage = event.finish_reason or "stop", event.usage or lm15.Usage()
            response = Response(id=None, model=self._wire_model, message=message, finish_reason=finish, usage=usage)
            self._counted(call, request, response)

    def _abandon(self, events: AsyncGenerator[Any, None]) -> None:
        with suppress(RuntimeError, lm15.NotConfiguredError):  # no loop, or a closed one: nothing runs there
            self._submit(_close(events))


class _Face:
    """What both engines have in common: they hold the Provider, and copies of an LM share them."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self.supports_function_calling = provider.supports_function_calling
        self.supports_response_schema = provider.supports_response_schema
        self.supports_reasoning = provider.supports_reasoning
        self.supported_params = provider.supported_params

    def __copy__(self) -> _Face:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> _Face:
        return self

    def dump_state(self) -> dict[str, Any]:
        """Return the model's name: neither the key nor the address belongs into a saved program."""
        return {"model": self.provider.route.model}

    @classmethod
    def load_state(cls, state: Mapping[str, Any]) -> _Face:
        """Return an engine for the model without credentials: its calls fail until an LM is set by name."""
        return cls(Provider(Route(str(state["model"])), None))


class ProviderEngine(_Face):
    """The engine for synchronous programs."""

    def complete(self, request: Request) -> Response:
        """Answer. Raises lm15 errors, CallStopped if the call must stop."""
        return self.provider.complete(request)

    def stream(self, request: Request) -> Iterator[Any]:
        """Answer in events."""
        return self.provider.stream(request)

    def close(self) -> None:
        """Close the provider's connections."""
        self.provider.close()


class ProviderAsyncEngine(_Face):
    """The engine for asynchronous programs."""

    async def complete(self, request: Request) -> Response:
        """Answer like ProviderEngine.complete."""
        return await self.provider.acomplete(request)

    def stream(self, request: Request) -> AsyncIterator[Any]:
        """Answer in events."""
        return self.provider.astream(request)

    async def aclose(self) -> None:
        """Close the provider's connections."""
        await asyncio.to_thread(self.provider.close)


async def _close(events: AsyncGenerator[Any, None]) -> None:
    with suppress(RuntimeError):  # a step that is being cancelled ends the iterator by itself
        await events.aclose()


async def _next(events: AsyncIterator[Any]) -> Any:
    return await anext(events, None)


def _begin() -> Call | None:
    """Begin an LM call of the current call. Raises CallStopped."""
    call = current_call.get()
    _step(call)
    return call


def _step(call: Call | None) -> None:
    if call is not None:
        call.step()


def _tokens(usage: Any) -> int:
    return int(usage.total_tokens or (usage.input_tokens or 0) + (usage.output_tokens or 0))
