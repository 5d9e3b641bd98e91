"""One definition of each remote method, for the client that waits and the one that is awaited.

A method of `Api` is a plan: it checks its arguments and returns a `Call`. Its decorator says what a client does with
the plan, and types it for both: on a `Waiting` client the result, on an `Awaiting` one an awaitable of it. A client
class gets real functions, made once when the class is; where it has a shorter way, in its `without_plan`, that one.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

from orchestrator.client.request import Call

if TYPE_CHECKING:
    from orchestrator.client.aio import AsyncFuture
    from orchestrator.client.calls import Callee
    from orchestrator.client.events import FleetEvent, Reading
    from orchestrator.client.future import Future
    from orchestrator.client.jobs import AsyncJob, Job
    from orchestrator.client.rows import MapPlan
    from orchestrator.client.stream import AsyncStream, Stream

P = ParamSpec("P")
T = TypeVar("T")


class Waiting:
    """Marks a client whose methods return when the answer is there."""


class Awaiting:
    """Marks a client whose methods return an awaitable."""


class Planned(Generic[P, T]):
    """A plan in a class body."""

    via: ClassVar[str]  # the client's method that takes the plan's result
    shows: ClassVar[tuple[str, str]]  # the return annotation on a waiting and on an awaiting client

    def __init__(self, plan: Callable[Concatenate[Any, P], Any]) -> None:
        self.plan = plan

    def bind(self, owner: type) -> Callable[..., Any]:
        """Return the method for a client class."""
        plan, via = self.plan, self.via
        direct: Callable[..., Any] | None = getattr(owner, "without_plan", {}).get(plan.__name__)

        @functools.wraps(plan)
        def planned(client: Any, /, *args: Any, **kwargs: Any) -> Any:
            return getattr(client, via)(plan(client, *args, **kwargs))

        method = planned if direct is None else functools.wraps(plan)(direct)
        inner = str(plan.__annotations__.get("return", "")).partition("[")[2].removesuffix("]") or "Any"
        shown = self.shows[issubclass(owner, Awaiting)].format(inner)
        signature = inspect.signature(plan)
        method.__signature__ = signature.replace(return_annotation=shown)  # type: ignore[attr-defined]
        return method


class remote(Planned[P, T]):
    """Do it and return the value."""

    via = "_run"
    shows = ("{}", "Awaitable[{}]")

    def __init__(self, plan: Callable[Concatenate[Any, P], Call[T]]) -> None:
        super().__init__(plan)

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: Waiting, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: Awaiting, owner: type) -> Callable[P, Awaitable[T]]: ...
    def __get__(self, client: Any, owner: type) -> Any:
        """Return the plan: on a client there is a function in its place."""
        return self


class submitting(Planned[P, T]):
    """Start it and return its future."""

    via = "_submit"
    shows = ("Future", "Awaitable[AsyncFuture]")

    def __init__(self, plan: Callable[Concatenate[Any, P], Call[T]]) -> None:
        super().__init__(plan)

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: Waiting, owner: type) -> Callable[P, Future]: ...
    @overload
    def __get__(self, client: Awaiting, owner: type) -> Callable[P, Awaitable[AsyncFuture]]: ...
    def __get__(self, client: Any, owner: type) -> Any:
        """Return the plan: on a client there is a function in its place."""
        return self


class starting(Planned[P, T]):
    """Start it and return a job."""

    via = "_start"
    shows = ("Job[{}]", "Awaitable[AsyncJob[{}]]")

    def __init__(self, plan: Callable[Concatenate[Any, P], Call[T]]) -> None:
        super().__init__(plan)

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: Waiting, owner: type) -> Callable[P, Job[T]]: ...
    @overload
    def __get__(self, client: Awaiting, owner: type) -> Callable[P, Awaitable[AsyncJob[T]]]: ...
    def __get__(self, client: Any, owner: type) -> Any:
        """Return the plan: on a client there is a function in its place."""
        return self


class calling(Planned[P, T]):
    """Return something to be called: the plan returns a function from its keyword arguments to a Call."""

    via = "_callee"
    shows = ("Callee", "Callee of awaitables")

    def __init__(self, plan: Callable[Concatenate[Any, P], Callable[[dict[str, Any]], Call[T]]]) -> None:
        super().__init__(plan)

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: Waiting, owner: type) -> Callable[P, Callee[T, Stream]]: ...
    @overload
    def __get__(self, client: Awaiting, owner: type) -> Callable[P, Callee[Awaitable[T], AsyncStream]]: ...
    def __get__(self, client: Any, owner: type) -> Any:
        """Return the plan: on a client there is a function in its place."""
        return self


class mapping(Planned[P, T]):
    """Iterate over the answers to many rows."""

    via = "_map"
    shows = ("Iterator", "AsyncIterator")

    def __init__(self, plan: Callable[Concatenate[Any, P], MapPlan]) -> None:
        super().__init__(plan)

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: Waiting, owner: type) -> Callable[P, Iterator[Any]]: ...
    @overload
    def __get__(self, client: Awaiting, owner: type) -> Callable[P, AsyncIterator[Any]]: ...
    def __get__(self, client: Any, owner: type) -> Any:
        """Return the plan: on a client there is a function in its place."""
        return self


class following(Planned[P, Any]):
    """Iterate over events, as they happen."""

    via = "_follow"
    shows = ("Iterator[FleetEvent]", "AsyncIterator[FleetEvent]")

    def __init__(self, plan: Callable[Concatenate[Any, P], Reading]) -> None:
        super().__init__(plan)

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: Waiting, owner: type) -> Callable[P, Iterator[FleetEvent]]: ...
    @overload
    def __get__(self, client: Awaiting, owner: type) -> Callable[P, AsyncIterator[FleetEvent]]: ...
    def __get__(self, client: Any, owner: type) -> Any:
        """Return the plan: on a client there is a function in its place."""
        return self


class streaming(Planned[P, Any]):
    """Read a request as it runs."""

    via = "_stream"
    shows = ("Stream", "AsyncStream")

    def __init__(self, plan: Callable[Concatenate[Any, P], Call[Any]]) -> None:
        super().__init__(plan)

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: Waiting, owner: type) -> Callable[P, Stream]: ...
    @overload
    def __get__(self, client: Awaiting, owner: type) -> Callable[P, AsyncStream]: ...
    def __get__(self, client: Any, owner: type) -> Any:
        """Return the plan: on a client there is a function in its place."""
        return self


def bind_methods(client_class: type, plans: type) -> None:
    """Give a client class a function for each plan of `plans` that neither it nor a class above it defines."""
    for name, plan in vars(plans).items():
        if isinstance(plan, Planned) and inspect.getattr_static(client_class, name) is plan:
            setattr(client_class, name, plan.bind(client_class))
