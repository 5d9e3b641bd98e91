"""What is made of a module's name, a signature and options: a plan, which can be called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from bridge import native
from bridge.protocol.errors import BridgeError
from bridge.worker import arguments
from bridge.worker.dspy_signature import to_dspy
from bridge.worker.inputs import Field, Inputs
from signatures.errors import SignatureError
from signatures.text.parser import read

# Options that go to the language model with every call of the module.
GENERATION: Final = (
    "temperature", "max_tokens", "top_p", "top_k", "stop", "seed", "frequency_penalty", "presence_penalty",
    "rollout_id",
)  # fmt: skip


class Plan(NamedTuple):
    """A module ready to be called, any number of times and from any thread.

    settings: DSPy's settings to call it under. is_async: it may run on an event loop.
    """

    module: Any
    inputs: Inputs
    outputs: tuple[str, ...]
    settings: Mapping[str, Any]
    is_async: bool


class Blueprint(NamedTuple):
    """What a module is built from.

    config: goes to the language model. options: the module's own. models: the language model of a name, "" = default.
    module: what a module that calls another one was given; None for others.
    """

    kind: str
    signature: Any
    config: dict[str, Any]
    options: Mapping[str, Any]
    models: Callable[[str], Any]
    module: Any = None


class Kind(NamedTuple):
    """A module of DSPy by name.

    options: the names of its own. taken: names of inputs that it uses for itself. extra: what it takes besides the
    signature's inputs. sandboxed: it runs code that a language model writes. calls_another: `options.module` names the
    module that it calls, whose options it takes too.
    """

    build: Callable[[Blueprint], Any]
    options: tuple[str, ...] = ()
    taken: frozenset[str] = frozenset()
    extra: Callable[[Blueprint], Mapping[str, Field]] | None = None
    sandboxed: bool = False
    calls_another: bool = False


def read_config(options: dict[str, Any], owner: str) -> dict[str, Any]:
    """Take what goes to the language model out of the options, and return it."""
    config: dict[str, Any] = {name: options.pop(name) for name in GENERATION if name in options}
    nested = arguments.mapping(options.pop("config", None), "options.config")
    problems = arguments.unknown_names(nested, GENERATION, owner, "options.config.")
    if problems:
        arguments.refuse(problems)
    return {**config, **nested}


def read_instructions(options: dict[str, Any]) -> str | None:
    """Take the instructions out of the options, None if there are none."""
    instructions = options.pop("instructions", None)
    return None if instructions is None else arguments.text(instructions, "options.instructions")


def compile_signature(text: str, instructions: str | None = None) -> Any:
    """Return DSPy's signature class for a text that the engine reads.

    instructions: for a text without a prefix. Raises BridgeError(SIGNATURE_ERROR) that tells every problem.
    """
    try:
        return to_dspy(read(text, instructions=instructions))
    except SignatureError as exc:
        # Some are about the canonical form: what was sent is what the caller knows.
        raise native.signature_error(exc if exc.text == text else SignatureError(exc.problems, text)) from exc


def signature_error(text: str, message: str) -> BridgeError:
    """Return a SIGNATURE_ERROR about a text as a whole."""
    return native.signature_error(SignatureError(message, text))
