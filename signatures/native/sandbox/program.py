"""A compiled template."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Final

from jinja2 import Template, TemplateSyntaxError

from signatures.native.sandbox.environment import Sandbox, told
from signatures.native.templates import MAX_OUTPUT_CHARS, TemplateError

_FILE: Final = "<template>"


@cache
def _sandbox() -> Sandbox:
    return Sandbox()


class Program:
    """A template, compiled. Used by any number of threads at once: a render keeps its state to itself."""

    __slots__ = ("_template",)

    def __init__(self, source: str) -> None:
        failed: TemplateError | None = None
        try:
            self._template: Template = _sandbox().from_string(_sandbox().counted(source))
        except TemplateSyntaxError as error:
            failed = TemplateError(error.message or "the template cannot be read", error.lineno)
        except (SyntaxError, RecursionError, MemoryError, ValueError) as error:
            failed = TemplateError(told(error, ()), 1)
        # Raised here, where the error's traceback no longer holds the compiler's frames.
        if failed:
            raise failed

    def render(self, values: Mapping[str, Any]) -> str:
        """Return the text for these values. Raises TemplateError."""
        try:
            return self._render(values)
        except TemplateError:
            raise
        except Exception as error:  # noqa: BLE001 - a stranger's __str__, __len__ or property can raise anything
            failed = TemplateError(told(error, values), self._line(error))
        raise failed

    def _render(self, values: Mapping[str, Any]) -> str:
        context = self._template.new_context(dict(values))
        pieces: list[str] = []
        size = 0
        for piece in self._template.root_render_func(context):
            size += len(piece)
            if size > MAX_OUTPUT_CHARS:
                raise TemplateError(f"the text is longer than {MAX_OUTPUT_CHARS:,} characters; give shorter values", 1)
            pieces.append(piece)
        return "".join(pieces)

    def _line(self, error: Exception) -> int:
        """Return the line of the template that was at work when the error was raised."""
        line, trace = 1, error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == _FILE:
                line = self._template.get_corresponding_lineno(trace.tb_lineno)
            trace = trace.tb_next
        return line
