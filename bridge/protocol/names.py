"""The names that no program may take: its calls would hide an operation, or be hidden by one."""

from __future__ import annotations

from typing import Final

# Of the operations that exist and of those of later versions: a program deployed today must not stand in their way.
TAKEN_NAMES: Final = ("ping", "echo", "sleep", "template", "validate", "embed", "optimize")
TAKEN_PREFIXES: Final = (
    "dspool.", "dspy.", "fault.", "jobs.", "metrics.", "pipelines.", "programs.", "validators.",
)  # fmt: skip


def is_taken(name: str) -> bool:
    """Return whether a name belongs to a built-in operation."""
    return name in TAKEN_NAMES or name.startswith(TAKEN_PREFIXES)
