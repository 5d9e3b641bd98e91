"""An OpenAI-compatible chat server on the loopback interface, with answers, delays and failures as scripted."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass(frozen=True)
class Answer:
    """What one request gets.

    text: the completion. latency_s: before the answer, and between the words of a streamed one. status: other than
    200 answers an error with the message `text` and the code `code`. hang: no answer until the server closes.
    tool_calls: names and arguments of functions that the model wants called, beside the text. dim: of embeddings,
    whatever was asked for.
    """

    text: str = "[[ ## answer ## ]]\nblue\n\n[[ ## completed ## ]]"
    latency_s: float = 0.0
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    hang: bool = False
    code: str | None = None
    tool_calls: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    dim: int | None = None


@dataclass(frozen=True)
class Seen:
    """A request as it came: its path, headers (lower case) and JSON body."""

    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]

    @property
    def question(self) -> str:
        """The text of the last message."""
        return str(self.body["messages"][-1]["content"])


class OpenAIServer:
    """Serves `answers` in turn, then `answer` for ever. A callable answer is asked with each request.

    `requests` lists what came; `peak` is the largest number of requests that were open at once; `connections`
    counts TCP connections. Use as a context manager.
    """

    def __init__(
        self, answer: Answer | Callable[[Seen], Answer] | None = None, *, answers: Iterable[Answer] = ()
    ) -> None:
        self.answer = answer or Answer()
        self.requests: list[Seen] = []
        self.peak = 0
        self.connections = 0
        self._answers = deque(answers)
        self._open = 0
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="openai-server")

    @property
    def url(self) -> str:
        """The base URL to configure as api_base."""
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def wait_for_requests(self, count: int, timeout_s: float = 10.0) -> None:
        """Wait until `count` requests have come. Raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.requests) >= count, timeout_s):
                raise TimeoutError(f"{len(self.requests)} of {count} requests came within {timeout_s} s")

    def wait_idle(self, timeout_s: float = 10.0) -> None:
        """Wait until no request is open. Raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._open == 0, timeout_s):
                raise TimeoutError(f"{self._open} requests are still open after {timeout_s} s")

    def close(self) -> None:
        """Stop serving; what hangs is let go."""
        self._closing.set()
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def begin(self, seen: Seen) -> Answer:
        """Record a request and return its answer."""
        with self._changed:
            self.requests.append(seen)
            self._open += 1
            self.peak = max(self.peak, self._open)
            scripted = self._answers.popleft() if self._answers else self.answer
            self._changed.notify_all()
        return scripted(seen) if callable(scripted) else scripted

    def end(self) -> None:
        """Record that a request is answered or gone."""
        with self._changed:
            self._open -= 1
            self._changed.notify_all()

    def pause(self, seconds: float) -> None:
        """Wait, unless the server closes."""
        self._closing.wait(seconds)

    def hang(self, gone: Callable[[], bool]) -> None:
        """Wait until the server closes or the client has gone away."""
        while not self._closing.wait(0.02):
            if gone():
                return


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    owner: OpenAIServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle of an answer is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        with self.server.owner._changed:
            self.server.owner.connections += 1

    def log_message(self, format: str, *args: Any) -> None:
        """The requests are recorded, not logged."""

    def do_POST(self) -> None:
        owner = self.server.owner
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = owner.begin(Seen(self.path, headers, body))
        streamed = answer.status == 200 and body.get("stream")
        try:
            if answer.hang:
                owner.hang(self._gone)
                self.close_connection = True
                return
            owner.pause(answer.latency_s)
            if streamed:
                self._stream(answer, str(body["model"]))
        except OSError:
            self.close_connection = True  # the client has gone
        finally:
            # Before the client can have its answer: its next request is not open beside this one.
            owner.end()
        if not streamed:
            self._send(json.dumps(_reply(answer, body)).encode(), answer)

    def _gone(self) -> bool:
        self.connection.setblocking(False)
        try:
            return self.connection.recv(1) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _send(self, data: bytes, answer: Answer) -> None:
        try:
            self.send_response(answer.status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            self.close_connection = True  # the client has gone

    def _stream(self, answer: Answer, model: str) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        for word in answer.text.split(" "):
            self._event({"choices": [{"index": 0, "delta": {"content": f"{word} "}}]}, model)
            self.server.owner.pause(answer.latency_s)
        for call in _tool_calls(answer):
            self._event({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}, model)
        self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": _finish(answer)}]}, model)
        self._event({"choices": [], "usage": _usage(answer.text, "")}, model)
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, fields: Mapping[str, Any], model: str) -> None:
        event = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": model, **fields}
        self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        self.wfile.flush()


def _reply(answer: Answer, body: Mapping[str, Any]) -> dict[str, Any]:
    if answer.status != 200:
        return {"error": {"message": answer.text, "type": "scripted", "code": answer.code}}
    if "input" in body:
        return _embeddings(body, answer.dim or body.get("dimensions") or 8)
    asked = " ".join(str(message["content"]) for message in body["messages"])
    message: dict[str, Any] = {"role": "assistant", "content": answer.text}
    if answer.tool_calls:
        message["tool_calls"] = _tool_calls(answer)
    return {
        "id": "c1",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body["model"],
        "choices": [{"index": 0, "finish_reason": _finish(answer), "message": message}],
        "usage": _usage(answer.text, asked),
    }


def embedding_of(text: str, dim: int = 8) -> list[float]:
    """Return what the server embeds a text as."""
    counts = [float(text.count(letter)) for letter in "aeiounst"]
    return (counts * (dim // len(counts) + 1))[:dim]


def _embeddings(body: Mapping[str, Any], dim: int) -> dict[str, Any]:
    texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
    vectors = [embedding_of(text, dim) for text in texts]
    tokens = sum(len(text.split()) for text in texts)
    return {
        "object": "list",
        "model": body["model"],
        "data": [{"object": "embedding", "index": index, "embedding": one} for index, one in enumerate(vectors)],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _finish(answer: Answer) -> str:
    return "tool_calls" if answer.tool_calls else "stop"


def _tool_calls(answer: Answer) -> list[dict[str, Any]]:
    return [
        {
            "index": number,
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments)},
        }
        for number, (name, arguments) in enumerate(answer.tool_calls)
    ]


def _usage(text: str, asked: str) -> dict[str, int]:
    prompt, completion = max(len(asked.split()), 1), len(text.split())
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
