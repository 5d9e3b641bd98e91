"""The remote methods, each defined once for both clients (see `remote`)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

from bridge.protocol.values import Prediction
from orchestrator.client.calls import absolute_target, is_program_name
from orchestrator.client.dataset import read_rows
from orchestrator.client.embedder import BATCH_SIZE, Embedder
from orchestrator.client.events import Reading
from orchestrator.client.jobs import OptimizationResult, Steps, read_result
from orchestrator.client.programs import ProgramsApi
from orchestrator.client.remote import (
    bind_methods,
    calling,
    following,
    mapping,
    remote,
    starting,
    streaming,
    submitting,
)
from orchestrator.client.request import (
    ORDINARY,
    Call,
    Terms,
    check_count,
    check_name,
    one_of,
    request_fields,
    request_terms,
)
from orchestrator.client.request import mapping as check_mapping
from orchestrator.client.rows import MAX_ROWS, MapPlan
from orchestrator.client.sessions import SessionsApi
from orchestrator.client.tools import Toolset
from orchestrator.errors import InvalidRequest
from pools.config import MAX_SIZE

if TYPE_CHECKING:
    import numpy

    from orchestrator.client.aio import AsyncClient
    from orchestrator.client.client import Client
    from orchestrator.client.signature_text import SignatureLike

OPTIMIZER_POOL: Final = "optimizer"


class Api(SessionsApi, ProgramsApi):
    """What can be asked of a coordinator.

    Options of every call: `pool` (None = where the operation is at home), `deadline_s` (None = the pool's default),
    `lm` (the name of a language model, None = the default one). Of calls of work also: `priority` ("high", "normal" or
    "low": who goes first where work waits, and who is refused first) and `idempotent` (True: if its worker dies, it may
    be run again, up to twice, within its deadline). Errors are those of `orchestrator.errors`.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        bind_methods(cls, Api)
        bind_methods(cls, SessionsApi)
        bind_methods(cls, ProgramsApi)

    # --- operations ---------------------------------------------------------------------------

    @remote
    def execute(
        self, operation: str, args: Any = None, *, pool: str | None = None, deadline_s: float | None = None,
        lm: str | None = None, priority: str = "normal", idempotent: bool = False, idempotency_key: str | None = None,
        session: str | None = None,
    ) -> Call[Any]:  # fmt: skip
        """Run an operation and return its value.

        operation: a built-in name, `dspy.<Module>`, or the name of a deployed program (whose args are its inputs).
        idempotency_key: 1 to 200 characters; calls of this principal, operation and key are one: it is run once, and
        later ones have its outcome for ten minutes. With other args the key is refused (InvalidRequest).
        session: the name of the session that it is a call of; it begins where there is none (see `session`).
        `template`, `validate`, `metrics.…` and `validators.…` run in this process unless a pool is given; the options
        then have no effect, and values may be such as could not travel.
        """
        terms = request_terms(priority, idempotent, idempotency_key, session)
        return Call(operation, args, pool, deadline_s, lm, terms=terms)

    @submitting
    def submit(
        self, operation: str, args: Any = None, *, pool: str | None = None, deadline_s: float | None = None,
        lm: str | None = None, priority: str = "normal", idempotent: bool = False, idempotency_key: str | None = None,
        session: str | None = None,
    ) -> Call[Any]:  # fmt: skip
        """Start an operation and return its future.

        Raises only what is known here: InvalidRequest, SignatureError, TooLarge, a closed client. While too many rows
        of this client are unanswered it waits for room, at most the deadline. What runs in this process (see `execute`)
        has run when this returns.
        """
        terms = request_terms(priority, idempotent, idempotency_key, session)
        return Call(operation, args, pool, deadline_s, lm, terms=terms)

    @streaming
    def stream(
        self, operation: str, args: Any = None, *, pool: str | None = None, deadline_s: float | None = None,
        lm: str | None = None, priority: str = "normal", idempotent: bool = False, session: str | None = None,
    ) -> Call[Any]:  # fmt: skip
        """Run an operation; iterate over `Token`, `Status`, `Progress`, and one `Final` with its value at the end.

        The request's error is raised in the place of its value. An operation that says nothing just gives `Final`.
        Leaving early cancels the request: `close`, a `with` block's end, or the stream itself gone. The reader sets
        the pace: while 64 events are not taken the program waits, after 30 s of that it ends with SlowConsumer.
        """
        terms = request_terms(priority, idempotent, session=session)
        return Call(operation, args, pool, deadline_s, lm, terms=terms)

    @mapping
    def map(
        self, operation: str, rows: Iterable[Any], *, ordered: bool = True, on_error: str = "raise", window: int = 256,
        chunk: int | str = "auto", progress: bool = False, pool: str | None = None, deadline_s: float | None = None,
        lm: str | None = None, priority: str = "normal", idempotent: bool = False,
    ) -> MapPlan:  # fmt: skip
        """Run an operation on each of many rows; iterate over the values.

        rows: read as needed, at most `window` ahead of what is taken. ordered: values come in the order of the rows.
        on_error: "raise" the first error, or "yield" errors in the place of values; a bad row fails alone. chunk: rows
        per request, 1 to 1024; "auto" measures. deadline_s: for each request. Stopping early cancels what is under way.
        Rows that are refused as Overloaded or CircuitOpen are sent again when the error's `retry_after_s` is over, if
        their deadline allows it; rows without one until no worker has answered a row for 60 s.
        What runs in this process (see `execute`) runs a row when its value is taken: no windows, no chunks.
        """
        fields = request_fields(operation, pool, deadline_s, lm)
        one_of("on_error", on_error, ("raise", "yield"))
        size = None if chunk == "auto" else check_count("chunk", chunk, MAX_ROWS)
        if isinstance(rows, str | bytes | Mapping) or not isinstance(rows, Iterable):
            raise InvalidRequest(f"rows must be an iterable of arguments, got {type(rows).__name__}", path="rows")
        return MapPlan(
            fields, rows, ordered, on_error == "raise", check_count("window", window), size, progress, deadline_s,
            request_terms(priority, idempotent),
        )  # fmt: skip

    @remote
    def ping(self, pool: str = "general", *, deadline_s: float | None = None) -> Call[dict[str, Any]]:
        """Ask a worker of a pool whether it is there; return which it is."""
        return Call("ping", {}, pool, deadline_s)

    @remote
    def embed(
        self, texts: Iterable[str], *, pool: str | None = None, deadline_s: float | None = None,
        priority: str = "normal",
    ) -> Call[numpy.ndarray]:  # fmt: skip
        """Return the embeddings of texts, an array of float32 of shape (n, dim)."""
        if isinstance(texts, str | bytes):
            raise InvalidRequest("texts must be a list of texts, got one text", path="texts")
        return Call("embed", {"texts": list(texts)}, pool, deadline_s, terms=request_terms(priority))

    def embedder(
        self, *, batch_size: int = BATCH_SIZE, pool: str | None = None, deadline_s: float | None = None,
        priority: str = "normal",
    ) -> Embedder:  # fmt: skip
        """Return what embeds texts in the pools, to be used in the place of a `dspy.Embedder`.

        batch_size: texts per request. The other options are those of its requests.
        """
        request_terms(priority)
        client = cast("Client | AsyncClient", self)
        return Embedder(client, check_count("batch_size", batch_size), pool, deadline_s, priority)

    # --- modules and programs -----------------------------------------------------------------

    @calling
    def module(
        self, name: str, signature: SignatureLike, *, options: Mapping[str, Any] | None = None,
        tools: Sequence[Any] | None = None, pool: str | None = None, deadline_s: float | None = None,
        lm: str | None = None, priority: str = "normal", idempotent: bool = False,
    ) -> Callable[[dict[str, Any]], Call[Prediction]]:  # fmt: skip
        """Return a DSPy module as something to call with its inputs: `module("dspy.Predict", "q -> a")(q="…")`.

        signature: a text, or a `Signature` class. tools: of an agent such as `dspy.ReAct`: functions of this process
        (asynchronous ones too), which are called here while the agent runs in a worker; import paths
        "package.module:name" or "file.py:name" of functions that run in the worker; "mcp:SERVER" or "mcp:SERVER/TOOL",
        of the servers in the configuration. A function's name, docstring and annotations tell the model what it is;
        what it raises is told to the model too. It may use this client. With `idempotent` a tool may be called again.
        """
        terms = request_terms(priority, idempotent)
        given = None if tools is None else Toolset.of(tools)
        return lambda inputs: _module_call(name, signature, inputs, options, pool, deadline_s, lm, terms, given)

    @remote
    def predict(self, signature: SignatureLike, /, **inputs: Any) -> Call[Prediction]:
        """Run `dspy.Predict` on inputs; `module` takes options. signature: a text, or a `Signature` class."""
        return _module_call("dspy.Predict", signature, inputs, None, None, None, None)

    @calling
    def program(
        self, name: str, *, pool: str | None = None, deadline_s: float | None = None, lm: str | None = None,
        priority: str = "normal", idempotent: bool = False,
    ) -> Callable[[dict[str, Any]], Call[Any]]:  # fmt: skip
        """Return a deployed program as something to call with its inputs."""
        terms = request_terms(priority, idempotent)
        return lambda inputs: Call(name, inputs, pool, deadline_s, lm, terms=terms)

    @starting
    def optimize(
        self, program: str | Mapping[str, Any], *, optimizer: str = "BootstrapFewShot", trainset: Any,
        valset: Any = None, metric: str, params: Mapping[str, Any] | None = None, seed: int = 0,
        budget: Mapping[str, Any] | None = None, pool: str = OPTIMIZER_POOL, deadline_s: float | None = None,
        lm: str | None = None,
    ) -> Call[OptimizationResult[Any]]:  # fmt: skip
        """Start an optimization; return its job.

        program: the name of a deployed program, or a target as `deploy` takes. trainset, valset: rows (mappings), or a
        .jsonl, .json or .csv file; no valset takes 20 % of the train set, chosen by the seed. metric: `NAME:FIELD`
        (exact, contains, f1, numeric …) or an import path. budget: {calls, seconds, usd}.
        """
        source = absolute_target(program)
        args = {
            "program": source if is_program_name(source) else {"target": source},
            "optimizer": optimizer,
            "trainset": read_rows(trainset, "trainset"),
            "valset": None if valset is None else read_rows(valset, "valset"),
            "metric": absolute_target(metric),
            "params": dict(check_mapping("params", params or {})),
            "seed": seed,
            "budget": None if budget is None else dict(check_mapping("budget", budget)),
        }
        read = functools.partial(read_result, source=source, deploy=self._run_steps)
        return Call("optimize", args, pool, deadline_s, lm, read, events=True)

    def _run_steps(self, steps: Steps) -> Any:
        """Run calls one after the other: each client in its way."""
        raise NotImplementedError

    # --- the coordinator ----------------------------------------------------------------------

    @remote
    def stats(self) -> Call[dict[str, Any]]:
        """Return counts of requests and of each pool."""
        return Call("dspool.stats")

    @remote
    def pools(self) -> Call[Any]:
        """Return the pools."""
        return Call("dspool.pools")

    @remote
    def workers(self) -> Call[list[dict[str, Any]]]:
        """Return the workers, those that died within the last hour too."""
        return Call("dspool.workers")

    @remote
    def logs(self, worker_id: str, lines: int | None = None) -> Call[list[str]]:
        """Return a worker's last lines of output. Raises NotFound."""
        args: dict[str, Any] = {"worker": check_name("worker_id", worker_id)}
        if lines is not None:
            args["lines"] = check_count("lines", lines)
        return Call("dspool.logs", args)

    @remote
    def resize(self, pool: str, size: int | Mapping[str, int] | tuple[int, int]) -> Call[dict[str, Any]]:
        """Bring a pool to a number of workers, 0 to 1024; return the pool as `pools` lists it.

        size: the number, or from how many to how many the pool may have as its work asks for: {"min": 1, "max": 8}, or
        (1, 8). It grows at once. It shrinks as workers of its highest places are done with what they run; they are
        given nothing more. All places up to the new size are in service again, drained ones too. Raises NotFound.
        """
        return Call("dspool.resize", {"pool": check_name("pool", pool), **_size_args(size)})

    @remote
    def drain(self, worker_id: str) -> Call[dict[str, Any]]:
        """Take a worker out of service; return it as `workers` lists it.

        It finishes what it runs, however long that takes, and ends. What it held beyond that goes to others. Its place
        stays empty until `restart` or `resize`. Raises NotFound.
        """
        return Call("dspool.drain", {"worker": check_name("worker_id", worker_id)})

    @remote
    def restart(self, worker_id: str, *, grace_s: float | None = None) -> Call[dict[str, Any]]:
        """Replace a worker, or one after the other all workers of a pool, by fresh ones; return who will be replaced.

        worker_id: a worker's id, or a pool's name. The new worker is ready before the old one is given nothing more;
        that one finishes what it runs and ends, or is killed after grace_s seconds (None = it has all the time that it
        needs). A place that was taken out of service is filled again. Raises NotFound, InvalidRequest.
        """
        args: dict[str, Any] = {"worker": check_name("worker_id", worker_id)}
        if grace_s is not None:
            args["grace_s"] = grace_s
        return Call("dspool.restart", args)

    @remote
    def health(self) -> Call[dict[str, Any]]:
        """Return how the fleet is: status ("ok", "degraded" or "critical"), mode, and issues by name.

        Each issue has a name, a subject, a level, since when (`since_s`), what is wrong (`text`) and what is, or can
        be, done about it (`action`).
        """
        return Call("dspool.health")

    @following
    def events(self, after: int = 0, *, follow: bool = True) -> Reading:
        """Iterate over the event log: what happens to the fleet, the past first, in order, each event once.

        after: the number (`seq`) of the last event that is known; 0 = begin with the oldest that is kept. Who goes on
        with the number that it saw last misses none, with another client and after a restart of the coordinator too;
        where some are not kept any more, an event `events_lost` says so. follow: wait for what happens; False = end
        with what has happened. Raises Unavailable when the coordinator ends.
        """
        return Reading(after, follow=follow)

    # --- dead letters -------------------------------------------------------------------------

    @remote
    def dead_letters(self) -> Call[list[dict[str, Any]]]:
        """Return the requests in quarantine: workers died of them, so they and their equals are refused."""
        return Call("dspool.dead_letters")

    @remote
    def dead_letter(self, letter_id: str) -> Call[dict[str, Any]]:
        """Return one request in quarantine, with its `args` where they can be decoded. Raises NotFound."""
        return Call("dspool.dead_letter", {"id": check_name("letter_id", letter_id)})

    @remote
    def requeue_dead_letter(self, letter_id: str, *, deadline_s: float | None = None) -> Call[Any]:
        """Take a request out of quarantine and run it once more; return its value, or raise what it ends with.

        Raises NotFound. If its worker dies once more, it is in quarantine again: PoisonRequest, under the same id.
        """
        return Call("dspool.dead_letter_requeue", {"id": check_name("letter_id", letter_id)}, deadline_s=deadline_s)

    @remote
    def drop_dead_letter(self, letter_id: str) -> Call[None]:
        """Forget a request in quarantine: its equals are accepted again. Raises NotFound."""
        return Call("dspool.dead_letter_drop", {"id": check_name("letter_id", letter_id)}, read=lambda _: None)


def _size_args(size: Any) -> dict[str, int]:
    """Return what `dspool.resize` is told of a size. Raises InvalidRequest."""
    if isinstance(size, Mapping) and size.keys() == {"min", "max"}:
        size = (size["min"], size["max"])
    if isinstance(size, tuple) and len(size) == 2 and all(map(_is_count, size)) and 1 <= size[0] <= size[1]:
        return {"size": size[0], "max": size[1]}
    if _is_count(size):
        return {"size": size}
    text = f'size must be a whole number from 0 to {MAX_SIZE}, or {{"min": 1 or more, "max": as many or more}}'
    raise InvalidRequest(f"{text}, got {size!r}", path="size")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_SIZE


def _module_call(
    name: str, signature: SignatureLike, inputs: dict[str, Any], options: Mapping[str, Any] | None, pool: str | None,
    deadline_s: float | None, lm: str | None, terms: Terms = ORDINARY, tools: Toolset | None = None,
) -> Call[Prediction]:  # fmt: skip
    args: dict[str, Any] = {"signature": signature, "inputs": inputs}
    if options:
        args["options"] = dict(check_mapping("options", options))
    if tools is None:
        return Call(name, args, pool, deadline_s, lm, terms=terms)
    if "tools" in args.get("options", ()):
        raise InvalidRequest("tools are given twice: as tools= and in options", path="options.tools")
    args["options"] = {**args.get("options", {}), "tools": list(tools.specs)}
    return Call(name, args, pool, deadline_s, lm, terms=terms, tools=tools if tools.own else None)
