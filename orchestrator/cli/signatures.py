"""`dspool signatures`: check them, show one, its JSON Schema, stubs of what is deployed."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bridge.protocol.errors import not_found
from orchestrator.cli.arguments import read_input
from orchestrator.cli.coordinators import session
from orchestrator.cli.failure import Exit, command
from orchestrator.cli.listings import AsJson
from orchestrator.cli.plain import plain
from orchestrator.cli.screen import fill, out, print_json, table
from orchestrator.errors import DspoolError, InvalidRequest, SignatureError, from_bridge
from signatures.errors import SignatureError as BadSignature

if TYPE_CHECKING:
    from orchestrator.cli.signature_files import Checked
    from signatures.model import Field, Spec

app = typer.Typer(help="Signatures: check them, show one, its JSON Schema, stubs of programs.", no_args_is_help=True)
OneSignature = Annotated[
    str, typer.Argument(metavar="SIGNATURE", help="A text, FILE.py:NAME, or - for standard input.")
]
_IN_FILE = re.compile(r"(?P<path>.+\.py):(?P<name>[^\W\d]\w*)")

_DOTTED = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")


# --- check ----------------------------------------------------------------------------------------


@app.command()
@command
def check(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help=".py, .yaml, .json, .jsonl, else one a line; - for stdin.")
    ],
    as_json: AsJson = False,
) -> None:
    """Check the signatures in files; every mistake is told, with its place. Nothing is imported or run.

    In Python: texts given to parse, @signature, dspy.Signature, Predict and the like, texts under a key `signature`,
    and declared classes. Exit codes: 1 if something is wrong, 2 if a file cannot be read.
    """
    from orchestrator.cli.signature_files import Unreadable, check_file, check_text

    checked: list[Checked] = []
    unreadable: list[str] = []
    for name in files:
        try:
            checked.append(check_text("<stdin>", read_input()) if name == "-" else check_file(Path(name)))
        except Unreadable as exc:
            unreadable.append(str(exc))
    problems = sum(len(one.findings) for one in checked)
    if as_json:
        print_json(_check_document(checked, unreadable))
    else:
        for line in (each for one in checked for each in one.told()):
            typer.echo(line)
        for text in unreadable:
            typer.echo(f"error: {text}", err=True)
        typer.echo(_counts(checked, problems))
    if unreadable:
        raise typer.Exit(Exit.USAGE)
    if problems:
        raise typer.Exit(Exit.FAILED)


def _counts(checked: list[Checked], problems: int) -> str:
    signatures = sum(one.signatures for one in checked)
    return f"{_number(problems, 'problem')} in {_number(signatures, 'signature')}, {_number(len(checked), 'file')}"


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _check_document(checked: list[Checked], unreadable: list[str]) -> dict[str, Any]:
    problems = [
        {"file": one.name, "line": each.line, "column": each.column, "message": each.message}
        for one in checked
        for each in one.findings
    ]
    return {
        "problems": problems,
        "signatures": sum(one.signatures for one in checked),
        "files": [one.name for one in checked],
        "unreadable": unreadable,
    }


# --- show and schema ------------------------------------------------------------------------------


@app.command()
@command
def show(signature: OneSignature, as_json: AsJson = False) -> None:
    """Show a signature's fields, instructions and digest."""
    spec = _spec(signature)
    if as_json:
        print_json(
            {
                "text": spec.text,
                "instructions": spec.instructions,
                "inputs": [_field_document(field) for field in spec.inputs],
                "outputs": [_field_document(field) for field in spec.outputs],
                "sha256": spec.sha256,
            }
        )
        return
    made = table("side", "name", "type", "constraints", "default", "description")
    console = out()
    console.print(fill(made, (_row(field) for field in spec.fields.values())))
    if spec.instructions:
        console.print(f"instructions: {spec.instructions}", markup=False)
    console.print(f"text: {spec.text}\nsha256: {spec.sha256}", markup=False)


def _row(field: Field) -> list[str]:
    from signatures.text.literals import literal

    default = "" if field.required else literal(field.default)
    shown = field.type.text if field.typed else f"{field.type.text} (not given)"
    return [field.kind, field.name, shown, field.constraints.text, default, field.description]


def _field_document(field: Field) -> dict[str, Any]:
    found = {
        "name": field.name, "type": field.type.text, "typed": field.typed, "required": field.required,
        "constraints": field.constraints.items(), "description": field.description,
    }  # fmt: skip
    return found if field.required else {**found, "default": plain(field.default)}


@app.command()
@command
def schema(signature: OneSignature, as_json: AsJson = False) -> None:
    """Print a signature's JSON Schema: an object of its inputs and its outputs."""
    from signatures.schema.writer import json_schema

    print_json(json_schema(_spec(signature)))


def _spec(argument: str) -> Spec:
    """Return the signature that an argument names. Raises SignatureError, InvalidRequest."""
    from signatures.text.parser import read

    text = read_input() if argument == "-" else argument
    place = None if argument == "-" or "->" in argument else _IN_FILE.fullmatch(argument)
    try:
        if place is not None:
            return _in_file(Path(place["path"]).expanduser(), place["name"])
        return read(text)
    except BadSignature as exc:
        raise exc if isinstance(exc, DspoolError) else SignatureError.of(exc) from None


def _in_file(path: Path, name: str) -> Spec:
    """Return the signature of a file's attribute, by importing the file: a class, or a text."""
    from signatures.declare import SignatureMeta
    from signatures.model import Spec
    from signatures.text.parser import read

    found = _attribute(path, name)
    if isinstance(found, str):
        return read(found)
    if isinstance(found, type) and any(base.__module__.startswith("dspy.") for base in found.__mro__):
        from bridge.worker.dspy_signature import from_dspy

        found = from_dspy(found)
    # Of other classes an attribute `spec` means something else.
    spec = getattr(found, "spec", None) if isinstance(found, SignatureMeta) else found
    if not isinstance(spec, Spec):
        raise InvalidRequest(
            f"{name} of {path} is no signature: it is of type {type(found).__name__}", path="signature"
        )
    return spec


def _attribute(path: Path, name: str) -> Any:
    if not path.is_file():
        raise InvalidRequest(f"{path}: no such file", path="signature")
    # A file may be called as a module that it imports: signatures.py.
    called = path.stem if path.stem not in sys.modules else f"{path.stem} ({path})"
    made = importlib.util.spec_from_file_location(called, path)
    assert made is not None
    assert made.loader is not None
    module = importlib.util.module_from_spec(made)
    sys.modules[called] = module  # declarations look their module up
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)  # while it is imported: what this program imports later is not to be found there
    try:
        # What it prints is not to stand among what is asked for.
        with contextlib.redirect_stdout(sys.stderr):
            made.loader.exec_module(module)
            return getattr(module, name)
    except (BadSignature, KeyboardInterrupt):
        raise
    except BaseException as exc:
        if isinstance(exc, AttributeError) and exc.obj is module and exc.name == name:
            raise InvalidRequest(f"{path} has no {name!r}", path="signature") from None
        text = "".join(traceback.format_exception_only(exc)).strip()
        raise InvalidRequest(f"{path} cannot be imported: {text}", path="signature") from exc
    finally:
        with contextlib.suppress(ValueError):  # it may have changed the path itself
            sys.path.remove(folder)


# --- stubs ----------------------------------------------------------------------------------------


@app.command()
@command
def stubs(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Deployed programs; else all.")] = None,
    file: Annotated[Path | None, typer.Option("--out", help="Write to this file, such as programs.pyi.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print a .pyi of the deployed programs, so that editors and type checkers know what they take and give."""
    from signatures.stubs import stubs as written

    with session() as client:
        programs = {row["name"]: row for row in client.programs()}
    chosen = names or sorted(programs)
    for name in chosen:
        if name not in programs:
            raise from_bridge(not_found("program", name, programs))
    specs = {name: _deployed(programs[name]) for name in chosen}
    text = written(specs)
    if file is not None:
        try:
            file.write_text(text, encoding="utf-8")
        except OSError as exc:
            raise InvalidRequest(f"{file} cannot be written: {exc.strerror}", path="out") from None
    if as_json:
        known = {name: None if spec is None else spec.text for name, spec in specs.items()}
        print_json({"programs": known, "file": None if file is None else str(file), "text": text})
    elif file is None:
        typer.echo(text, nl=False)
    else:
        out().print(f"{file}: stubs of {_number(len(specs), 'program')}", markup=False)


def _deployed(row: Mapping[str, Any]) -> Spec | None:
    """Return a deployed program's signature, None if it is not known. Classes of its own are stood for."""
    from orchestrator.cli.signature_files import placeholders
    from signatures.text.parser import read

    text = row.get("signature")
    if not text:
        return None
    try:
        return read(text, types=placeholders(set(_DOTTED.findall(text))))
    except BadSignature:
        return None
