"""What can be a name in a message, and the names that no program may take.

A program's calls would hide an operation, or be hidden by one.
"""

from __future__ import annotations

from typing import Final

# Of the operations that exist and of those of later versions: a program deployed today must not stand in their way.
TAKEN_NAMES: Final = ("ping", "echo", "sleep", "template", "validate", "embed", "optimize")
TAKEN_PREFIXES: Final = (
    "dspool.", "dspy.", "events.", "fault.", "jobs.", "metrics.", "pipelines.", "programs.", "services.", "session.",
    "sessions.", "store.", "validators.",
)  # fmt: skip


def is_text(name: str) -> bool:
    """Return whether a text can be a name: messages, and stores, have no lone halves of surrogate pairs."""
    if name.isascii():
        return True
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_taken(name: str) -> bool:
    """Return whether a name belongs to a built-in operation."""
    return name in TAKEN_NAMES or name.startswith(TAKEN_PREFIXES)


def bare(operation: str) -> str:
    """Return the name under which a program was deployed: "qa" of "qa@7" and "qa@live". Other names are as they are."""
    return operation.partition("@")[0]
