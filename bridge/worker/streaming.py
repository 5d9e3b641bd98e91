"""What a program answers, streamed to its caller while it runs: tokens of text fields, and what it is doing."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import dspy  # type: ignore[import-untyped]
import pydantic_core
from dspy.clients.engines.streaming import EngineChunk  # type: ignore[import-untyped]
from dspy.dsp.utils.settings import thread_local_overrides  # type: ignore[import-untyped]
from dspy.streaming import StatusMessage, StreamListener, StreamResponse  # type: ignore[import-untyped]
from dspy.utils.callback import BaseCallback  # type: ignore[import-untyped]
from dspy.utils.callback_context import ACTIVE_CALL_ID  # type: ignore[import-untyped]

from bridge.worker.call import Call
from bridge.worker.emitter import TOKEN
from bridge.worker.program_loop import reaches_loop

STATUS: Final = "status"
# DSPy's listeners know the answers of these and of no others, not even of their subclasses.
_ADAPTERS: Final = frozenset({"ChatAdapter", "JSONAdapter", "XMLAdapter"})


class Stream:
    """DSPy's `send_stream` of one attempt: takes the chunks of its language model and emits what they say.

    Each answer of a language model has listeners of its own: a predictor may be called again, and many times at once.
    """

    def __init__(self, module: Any, call: Call) -> None:
        self._call = call
        self._names = {id(predictor): name for name, predictor in module.named_predictors()}
        self._open: dict[tuple[int, str | None], list[Any]] = {}

    async def send(self, value: Any) -> None:
        """Take what DSPy, or a program itself, sends: chunks and status messages; the rest has no meaning here."""
        if isinstance(value, StatusMessage):
            await self._call.aemit(STATUS, {"message": value.message})
        elif isinstance(value, EngineChunk):
            await self._take(value)

    async def end(self) -> None:
        """Emit what the listeners still hold, and wait until all is sent."""
        for key in list(self._open):
            await self._finish(key)
        await self._call.flush()

    async def _take(self, chunk: Any) -> None:
        predictor = dspy.settings.caller_predict
        if predictor is None or not _streams(dspy.settings.adapter):
            return
        key = (id(predictor), ACTIVE_CALL_ID.get())
        listeners = self._open.get(key)
        if listeners is None:
            listeners = self._open[key] = self._listen(predictor)
        for listener in listeners:
            said = listener.receive(chunk)
            for response in said if isinstance(said, list) else [said]:
                await self._emit(response)
        if chunk.choices[0].finish_reason is not None:
            await self._finish(key)

    async def _finish(self, key: tuple[int, str | None]) -> None:
        for listener in self._open.pop(key):
            await self._emit(listener.finalize())

    async def _emit(self, response: Any) -> None:
        if response is not None and isinstance(response.chunk, str) and response.chunk:
            fields = {
                "predictor": response.predict_name,
                "field": response.signature_field_name,
                "text": response.chunk,
            }
            await self._call.aemit(TOKEN, fields)

    def _listen(self, predictor: Any) -> list[Any]:
        # One that the program made while it ran has no name.
        name, fields = self._names.get(id(predictor), ""), text_fields(predictor)
        if isinstance(dspy.settings.adapter, dspy.JSONAdapter):
            return [_JsonListener(name, fields)] if fields else []
        return [StreamListener(field, predict=predictor, predict_name=name) for field in fields]


class _JsonListener:
    """Reads the text fields of a JSON answer. DSPy's own listener gives them as JSON, quotes and escapes included."""

    def __init__(self, predictor: str, fields: Sequence[str]) -> None:
        self._predictor = predictor
        self._said = dict.fromkeys(fields, "")
        self._answer = ""

    def receive(self, chunk: Any) -> list[StreamResponse]:
        """Return what a chunk adds to the fields."""
        self._answer += chunk.choices[0].delta.content or ""
        begin = self._answer.find("{")
        try:
            read = pydantic_core.from_json(self._answer[begin:], allow_partial="trailing-strings") if begin >= 0 else {}
        except ValueError:  # no JSON, or more than that
            return []
        found = []
        for field, said in self._said.items():
            text = read.get(field)
            if isinstance(text, str) and text != said and text.startswith(said):
                self._said[field] = text
                found.append(StreamResponse(self._predictor, field, text[len(said) :], is_last_chunk=False))
        return found

    def finalize(self) -> None:
        """Nothing is held back."""


class _Wanted:
    """Stands among DSPy's `stream_listeners` for all of them: its predictor equals each that answers text."""

    predict: Any

    def __init__(self) -> None:
        self.predict = _TextPredictor()


class _TextPredictor:
    def __eq__(self, other: object) -> bool:
        return bool(text_fields(other))

    __hash__ = None  # type: ignore[assignment]


class _Statuses(BaseCallback):  # type: ignore[misc]
    """Tells which tool is called and which part of the program runs."""

    def __init__(self, module: Any, call: Call) -> None:
        self._call = call
        # Parts of DSPy's own modules, and parts of parts, would say nothing to a reader.
        own = type(module).__module__.partition(".")[0] == "dspy"
        parts = [] if own else module.named_sub_modules()
        self._names = {id(part): path.partition(".")[2] for path, part in parts if path.count(".") == 1}

    def on_tool_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Tell of a tool. `finish` is ReAct's own."""
        if instance.name != "finish":
            self._call.put(STATUS, {"message": f"Calling {instance.name}…"})

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Tell of a part of the program."""
        name = self._names.get(id(instance))
        if name is not None:
            self._call.put(STATUS, {"message": f"Running {name}…"})

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Have the answer come whole where it could not be streamed: on threads that know no event loop.

        DSPy hands its settings to the threads of its executors; a chunk that is sent there would fail the call.
        """
        if not reaches_loop():
            settings = thread_local_overrides.get()
            thread_local_overrides.set(type(settings)({**settings, "send_stream": None}))


@contextmanager
def streaming(module: Any, call: Call) -> Iterator[Stream]:
    """Stream what `module` answers in the body. To be called within a Scope, on the program loop."""
    stream = Stream(module, call)
    more: dict[str, Any] = {}
    if _streams(dspy.settings.adapter):
        more = {"send_stream": stream, "stream_listeners": [_Wanted()]}
    with dspy.context(callbacks=[*dspy.settings.callbacks, _Statuses(module, call)], **more):
        yield stream


def text_fields(predictor: Any) -> list[str]:
    """Return the outputs of a predictor that come as text, piece by piece."""
    signature = getattr(predictor, "signature", None)
    return [] if signature is None else [
        name for name, info in signature.output_fields.items() if _is_text(info.annotation)
    ]  # fmt: skip


def _is_text(annotation: Any) -> bool:
    if annotation is str:
        return True
    if not inspect.isclass(annotation) or not issubclass(annotation, dspy.Type):
        return False
    return bool(annotation.is_streamable())  # type: ignore[attr-defined]


def _streams(adapter: Any) -> bool:
    return adapter is None or type(adapter).__name__ in _ADAPTERS
