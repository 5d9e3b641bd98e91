"""The Jinja2 environment of templates: its sandbox, narrowed to an allow-list and charged to a meter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, Final

from jinja2 import StrictUndefined, UndefinedError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import missing, pass_context

from signatures.names import close_name
from signatures.native.sandbox import values
from signatures.native.sandbox.callables import GLOBALS, TESTS, methods_of
from signatures.native.sandbox.filters import FILTERS, meter_of
from signatures.native.sandbox.meter import Meter, Refused
from signatures.native.sandbox.syntax import Counted, TokenLimit, check
from signatures.native.sandbox.values import Method
from signatures.native.sandbox.woven import WOVEN

_LOOP: Final = frozenset({
    "index", "index0", "revindex", "revindex0", "first", "last", "length", "depth", "depth0", "previtem", "nextitem",
})  # fmt: skip
# Enough to name what was meant; comparing names is slow.
_MAX_NAMES: Final = 200


class Absent(UndefinedError):
    """A value, or a part of one, that is not there. name: what was asked for. owner: of the part, else `missing`."""

    def __init__(self, message: str, name: Any, owner: Any) -> None:
        super().__init__(message)
        self.name = name
        self.owner = owner


class Nothing(StrictUndefined):
    """What stands for something that is not there: only `default` and `is defined` take it."""

    __slots__ = ()

    def __init__(
        self, hint: str | None = None, obj: Any = missing, name: Any = None, exc: Any = UndefinedError
    ) -> None:
        # Close names are sought when the error is told: most look-ups that fail are followed by `default`.
        asked = name if hint is None else None
        super().__init__(hint, obj, name, lambda message: Absent(message, asked, obj))  # type: ignore[arg-type]


class MeteredContext(Context):
    """One render's values, and its budget."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.meter = Meter()

    def buffer(self) -> Buffer:
        """Return where a macro or a block collects its text."""
        return Buffer(self.meter)


class Buffer(list[str]):
    """Text collected piece by piece, each charged before it is kept."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self._meter = meter

    def append(self, piece: str) -> None:
        """Charge and keep a piece."""
        self._meter.write(1 + len(piece))
        super().append(piece)

    def extend(self, pieces: Iterable[str]) -> None:
        """Charge and keep each piece."""
        for piece in pieces:
            self.append(piece)


class MeteredCode(CodeGenerator):
    """Jinja2's compiler, with buffers that count."""

    def buffer(self, frame: Frame) -> None:
        """Open a buffer that charges what is written to it."""
        frame.buffer = self.temporary_identifier()
        self.writeline(f"{frame.buffer} = context.buffer()")


class Sandbox(ImmutableSandboxedEnvironment):
    """Templates read data: values, their fields and items, and the methods that `callables` lists. Nothing else."""

    code_generator_class = MeteredCode
    context_class = MeteredContext
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})
    intercepted_unops = frozenset({"+", "-"})

    def __init__(self) -> None:
        # Folding constants would run filters while compiling, without a budget.
        super().__init__(
            autoescape=False, optimized=False, keep_trailing_newline=True, cache_size=0, undefined=Nothing,
            finalize=_shown, extensions=[TokenLimit],
        )  # fmt: skip
        self.filters = FILTERS | WOVEN
        self.tests = dict(TESTS)
        self.globals = dict(GLOBALS)

    def counted(self, source: str) -> nodes.Template:
        """Return the syntax tree of a template, checked, with the counting woven in."""
        tree = self.parse(source)
        check(tree)
        Counted().visit(tree)
        tree.set_environment(self)
        return tree

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return a method that may be called, a mapping's item, or an object's data. Refuses all else."""
        function = methods_of(obj).get(attribute)
        return self._member(obj, attribute) if function is None else Method(function, attribute, obj)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Return an item of a mapping or a list, else what `getattr` gives for a name."""
        values.fail_if_missing(obj)
        key = values.scalar(argument, "a key")
        if isinstance(obj, Mapping):
            # Asking first: a defaultdict would add the key.
            return obj[key] if key in obj else self._absent(obj, key)
        if isinstance(key, str):
            return self.getattr(obj, key)
        if isinstance(obj, values.INTERNALS) or not hasattr(type(obj), "__getitem__"):
            raise Refused(f"{values.kind(obj)} has no items; take its fields by name")
        try:
            return obj[key]
        except (LookupError, TypeError):
            return self._absent(obj, key)

    def _member(self, obj: Any, name: str) -> Any:
        values.fail_if_missing(obj)
        if isinstance(obj, Mapping):
            return obj[name] if name in obj else self._absent(obj, name)
        if name.startswith("_") or isinstance(obj, (values.INTERNALS, Macro, Method)):
            raise Refused(f"'{name}' of {values.kind(obj)} is internal; templates read data only")
        if isinstance(obj, LoopContext) and name not in _LOOP:
            return self._absent(dict.fromkeys(_LOOP), name)
        found = getattr(obj, name, missing)
        if found is missing:
            return self._absent(obj, name)
        # What is before the first item and behind the last one is missing, and callable as all that is missing.
        is_missing = isinstance(found, StrictUndefined)
        if not is_missing and (callable(found) or isinstance(found, values.INTERNALS)):
            usable = ", ".join(methods_of(obj)) or "none"
            raise Refused(f"'{name}' of {values.kind(obj)} cannot be used; methods that can: {usable}")
        return found

    def _absent(self, obj: Any, name: Any) -> Any:
        return self.undefined(obj=obj, name=name)

    def call(self, context: Context, target: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a listed method, a macro or a recursive loop. Refuses all else: passed values are data."""
        kwargs.pop("_loop_vars", None)
        kwargs.pop("_block_vars", None)
        meter = meter_of(context)
        meter.spend(1 + len(args) + len(kwargs))
        if type(target) is Method:
            return target.function(context, target.owner, *args, **kwargs)
        values.fail_if_missing(target)
        if isinstance(target, LoopContext):
            args = tuple(values.sized(meter, one, "loop") for one in args)
        elif not isinstance(target, Macro):
            raise Refused(
                f"{values.kind(target)} cannot be called; call macros and methods, and pass results as values"
            )
        meter.enter()
        result = target(*args, **kwargs)
        meter.leave()
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Return `left operator right`, bounded."""
        return values.arithmetic(meter_of(context), operator, left, right)

    def call_unop(self, context: Context, operator: str, arg: Any) -> Any:
        """Return a number with the sign."""
        value = values.number(arg, operator)
        return -value if operator == "-" else +value


@pass_context
def _shown(context: Context, value: Any) -> str:
    """Return the text of `{{ value }}`. Shown text is charged where it is collected."""
    return value if type(value) is str else values.text(meter_of(context), value)


def told(error: Exception, names: Iterable[Any]) -> str:
    """Return what an error means to who wrote the template. names: of the values given."""
    known: Iterable[Any]
    match error:
        case Absent(name=str() | int() as name, owner=owner):
            if owner is missing:
                start, known = f"'{name}' has no value", names
                if name in set(names):
                    # Within `{% set x %}…{% endset %}` x is the new one.
                    return f"{start} yet: the template sets it, but not before this; read it under another name"
            else:
                start = f"{values.kind(owner)} has no {str(name)[:80]!r}"
                known = owner if isinstance(owner, Mapping) else getattr(owner, "__dict__", ())
            close = close_name(str(name), (one for one in islice(known, _MAX_NAMES) if isinstance(one, str)))
            return start + (f"; did you mean '{close}'?" if close else "; pass it, or use the filter 'default'")
        case RecursionError():
            return "the template is nested too deep; use fewer levels"
        case SyntaxError():
            return f"the template cannot be compiled: {error.msg}; use fewer levels"
        case MemoryError():
            return "the template needs more memory than there is; give it shorter values"
        case TypeError():
            return f"a value or an argument is not of the right kind: {_said(error)}"
    return _said(error)


def _said(error: Exception) -> str:
    try:
        return str(error) or type(error).__name__
    except Exception:  # noqa: BLE001 - an error of a stranger's value can fail at this too
        return type(error).__name__
