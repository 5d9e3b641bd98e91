"""`offline/knn`: a language model without a network and without a model. Deterministic; not an LLM.

It learns in context. With demonstrations in the prompt it answers as the nearest one does, without them it goes
by simple rules. Equal prompts get equal answers; another rollout gets the next answer where there is one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import parse_qsl

from dspy.lm15 import (  # type: ignore[import-untyped]
    Message,
    Request,
    Response,
    ServerError,
    StreamDeltaEvent,
    StreamEndEvent,
    StreamStartEvent,
    TextDelta,
    TextPart,
    ToolCallPart,
    ToolResultPart,
    Usage,
)

from bridge.protocol.errors import INVALID_REQUEST, BridgeError, closest
from bridge.worker.call import Call, current_call
from bridge.worker.lm.agent import RESULTS, is_step, is_turn, next_step, next_turn
from bridge.worker.lm.coder import is_code, next_code
from bridge.worker.lm.knn import neighbours
from bridge.worker.lm.prompt import Prompt, read_prompt
from bridge.worker.lm.rollout import Rollout, next_rollout
from bridge.worker.lm.rules import THOUGHTS, answer_by_rules, field_by_rules
from bridge.worker.lm.waiting import apause, pause

PREFIX = "offline/"
MODEL = "offline/knn"
_WORD_WITH_SPACE = re.compile(r"\s*\S+|\s+")


@dataclass(frozen=True, slots=True)
class OfflineOptions:
    """latency_ms: time before each answer. error_rate: the share 0..1 of requests that fail; seed: which ones."""

    latency_ms: float = 0.0
    error_rate: float = 0.0
    seed: int = 0


def read_options(model: str) -> OfflineOptions:
    """Read `offline/knn?latency_ms=200&error_rate=0.01&seed=1`. Raises BridgeError INVALID_REQUEST."""
    name, _, query = model.partition("?")
    if name != MODEL:
        raise BridgeError(INVALID_REQUEST, f"there is no model {name!r}: the offline one is {MODEL!r}")
    known = {"latency_ms": float, "error_rate": float, "seed": int}
    found: dict[str, Any] = {}
    for key, text in parse_qsl(query, keep_blank_values=True):
        if key not in known:
            hint = "".join(f"; did you mean {name!r}?" for name in closest(key, known)[:1])
            raise BridgeError(INVALID_REQUEST, f"{MODEL} has no option {key!r}{hint} (options: {', '.join(known)})")
        try:
            found[key] = known[key](text)
        except ValueError:
            raise BridgeError(INVALID_REQUEST, f"{MODEL}: {key} must be a number, got {text!r}") from None
    options = OfflineOptions(**found)
    if not 0 <= options.error_rate <= 1 or not 0 <= options.latency_ms <= 3_600_000:
        raise BridgeError(INVALID_REQUEST, f"{MODEL}: error_rate must be 0..1 and latency_ms 0..3600000, got {model!r}")
    return options


class _Shared:
    """What both engines have in common: options, what DSPy asks of an engine, and the answers. Immutable."""

    supports_function_calling = False
    supports_response_schema = False
    supports_reasoning = False
    supported_params = frozenset({"temperature", "max_tokens"})

    def __init__(self, options: OfflineOptions | None = None) -> None:
        self.options = options or OfflineOptions()

    def __copy__(self) -> _Shared:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return self

    def dump_state(self) -> dict[str, Any]:
        """Return the options, for a saved program."""
        return asdict(self.options)

    @classmethod
    def load_state(cls, state: Mapping[str, Any]) -> _Shared:
        """Return an engine with the options of a saved one."""
        return cls(OfflineOptions(**state))

    def _answer(self, request: Request, call: Call | None) -> Response:
        """Answer one request and count it. Raises lm15.ServerError for the share of requests that must fail."""
        rollout = next_rollout()
        system = request.system if isinstance(request.system, str) else _joined(request.system or ())
        turns = [(message.role, _joined(message.parts)) for message in request.messages]
        texts = [system, *(text for _, text in turns)]
        digest = hashlib.sha256("\x00".join([str(self.options.seed), str(rollout), *texts]).encode()).hexdigest()
        if int(digest[:12], 16) < self.options.error_rate * 16**12:
            if call is not None:
                call.used(lm_calls=1)
            raise ServerError(f"{MODEL} fails this request: error_rate is set", provider="offline", status=503)
        prompt = read_prompt(system, turns)
        text = prompt.render(_fields(prompt, rollout, submits=request.config.tool_choice is not None))
        usage = _usage(texts, text)
        if call is not None:
            call.used(lm_calls=1, tokens=usage.total_tokens)
        return Response(
            id=f"offline-{digest[:16]}",
            model=MODEL,
            message=Message.assistant([TextPart(text)]),
            finish_reason="stop",
            usage=usage,
            provider_data={"dspool": {"offline": True}},
        )


class OfflineEngine(_Shared):
    """The engine for synchronous programs. Thread-safe."""

    def complete(self, request: Request) -> Response:
        """Answer. Raises lm15.ServerError as configured, CallStopped if the call must stop."""
        call = current_call.get()
        if call is not None:
            call.step()
        if self.options.latency_ms:
            pause(call, self.options.latency_ms / 1000)
        return self._answer(request, call)

    def stream(self, request: Request) -> Iterator[Any]:
        """Answer in events, a word each."""
        yield from _events(self.complete(request))

    def close(self) -> None:
        """Nothing is held."""


class OfflineAsyncEngine(_Shared):
    """The engine for asynchronous programs."""

    async def complete(self, request: Request) -> Response:
        """Answer like OfflineEngine.complete."""
        call = current_call.get()
        if call is not None:
            call.step()
        if self.options.latency_ms:
            await apause(call, self.options.latency_ms / 1000)
        return self._answer(request, call)

    async def stream(self, request: Request) -> AsyncIterator[Any]:
        """Answer in events, a word each."""
        for event in _events(await self.complete(request)):
            yield event

    async def aclose(self) -> None:
        """Nothing is held."""


def _fields(prompt: Prompt, rollout: Rollout, *, submits: bool) -> dict[str, Any]:
    if is_turn(prompt):
        return next_turn(prompt, rollout.variation, submits=submits)
    if is_code(prompt):
        return next_code(prompt)
    if is_step(prompt):
        # A copied step would carry the arguments of another question.
        return next_step(prompt, rollout.variation)
    if prompt.task is None or not prompt.demos:
        return answer_by_rules(prompt, rollout.variation)
    ranked = neighbours(tuple(demo.text for demo in prompt.demos)).ranked(prompt.text)
    answers: dict[str, Mapping[str, Any]] = {}
    for index, _ in ranked:
        outputs = prompt.demos[index].outputs
        answers.setdefault(repr([item for item in outputs.items() if item[0] not in THOUGHTS]), outputs)
        if len(answers) > rollout.variation:
            break
    copied = list(answers.values())[rollout.variation % len(answers)]
    return {
        output.name: copied[output.name] if output.name in copied else field_by_rules(prompt, output, rollout.variation)
        for output in prompt.task.outputs
    }


def _events(response: Response) -> Iterator[Any]:
    yield StreamStartEvent(id=response.id, model=response.model)
    for piece in _WORD_WITH_SPACE.findall(response.message.text):
        yield StreamDeltaEvent(TextDelta(piece))
    yield StreamEndEvent(finish_reason="stop", usage=response.usage, provider_data=response.provider_data)


def _usage(texts: list[str], answer: str) -> Usage:
    """Count words as tokens."""
    asked, answered = sum(len(text.split()) for text in texts), len(answer.split())
    return Usage(input_tokens=asked, output_tokens=answered, total_tokens=asked + answered)


def _joined(parts: tuple[Any, ...]) -> str:
    return "\n".join(text for part in parts if (text := _text_of(part)))


def _text_of(part: Any) -> str:
    """Return a part of a message as the text that an adapter without native tool calls would have sent."""
    if isinstance(part, TextPart):
        return str(part.text)
    if isinstance(part, ToolCallPart):
        return json.dumps({"tool_calls": [{"name": part.name, "args": part.input}]})
    if isinstance(part, ToolResultPart):
        results = [{"name": part.name, "value": _joined(part.content), "is_error": part.is_error}]
        return f"[[ ## {RESULTS} ## ]]\n{json.dumps({RESULTS: results})}"
    return ""
