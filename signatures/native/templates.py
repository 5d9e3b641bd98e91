"""Templates of prompts: Jinja2's syntax, in a sandbox that bounds time and memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from signatures.native.sandbox.program import Program

MAX_TEMPLATE_BYTES: Final = 64 * 1024
MAX_OUTPUT_CHARS: Final = 1024 * 1024
CACHED_TEMPLATES: Final = 256
# A compiled template takes many times the room of its text.
CACHED_CHARS: Final = 512 * 1024


class TemplateError(ValueError):
    """A template that cannot be read or rendered. message: what is wrong and the fix. line: where, counted from 1."""

    def __init__(self, message: str, line: int = 1) -> None:
        super().__init__(message, line)
        self.message = message
        self.line = line

    def __str__(self) -> str:
        return f"{self.message} (line {self.line} of the template)"


def render(template: str, values: Mapping[str, Any]) -> str:
    """Return the template's text with the values filled in.

    Jinja2 without files: no include, import, extends or block; no autoescape; the last newline is kept. A name
    without a value is an error. Values are data: templates read their items and fields, and call only the methods of
    text, lists, mappings and dates listed in `sandbox.callables`; filters are those of `sandbox.filters`.

    Bounds: the template 64 KiB of UTF-8, the text 1,048,576 characters, and the work of one render as `sandbox.meter`
    counts it, whether it shows or not. Values of types other than Python's own run their own `__str__`,
    `__len__` and properties: these are trusted. Raises TemplateError.
    """
    program = _cache.get(template) if isinstance(template, str) else None
    return (program or _compiled(template)).render(values)


class _Cache:
    """The programs used last, bounded by their number and by the length of their texts. Safe between threads."""

    def __init__(self, most: int, most_chars: int) -> None:
        self._most = most
        self._most_chars = most_chars
        self._programs: OrderedDict[str, Program] = OrderedDict()
        self._chars = 0
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._programs)

    @property
    def chars(self) -> int:
        """Characters of all templates kept."""
        return self._chars

    def get(self, template: str) -> Program | None:
        with self._lock:
            program = self._programs.get(template)
            if program is not None:
                self._programs.move_to_end(template)
            return program

    def put(self, template: str, program: Program) -> None:
        with self._lock:
            if template not in self._programs:
                self._chars += len(template)
            self._programs[template] = program
            while len(self._programs) > self._most or self._chars > self._most_chars:
                oldest, _ = self._programs.popitem(last=False)
                self._chars -= len(oldest)


_cache: Final = _Cache(CACHED_TEMPLATES, CACHED_CHARS)


def _compiled(template: str) -> Program:
    if not isinstance(template, str):
        raise TemplateError(f"a template must be text, got {type(template).__name__}")
    if len(template) > MAX_TEMPLATE_BYTES or len(template.encode("utf-8", "surrogatepass")) > MAX_TEMPLATE_BYTES:
        raise TemplateError(f"the template is longer than {MAX_TEMPLATE_BYTES:,} bytes; pass long text as a value")
    # Jinja2 takes 0.1 s to import; most processes never render.
    from signatures.native.sandbox.program import Program

    program = Program(template)
    _cache.put(template, program)
    return program
