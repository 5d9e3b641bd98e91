"""The progress of an optimization: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from orchestrator.client.jobs import Job


def follow(job: Job[Any], console: Console) -> None:
    """Show a job's events until it ends."""
    if not console.is_terminal:
        say = Lines(lambda line: console.print(line, markup=False))
        for event in job.events():
            say.show(event.kind, event.data)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = Bar(progress)
        for event in job.events():
            bar.show(event.kind, event.data)


class Lines:
    """One line where a phase begins and one for each scored program."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._phase: tuple[str, int] | None = None

    def show(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Show one event."""
        if kind == "started":
            rows = f"{fields['train_rows']} training rows, {fields['validation_rows']} validation rows"
            self._write(f"{fields['optimizer']}: {rows}, seed {fields['seed']}")
        elif kind == "candidate":
            self._write(f"{fields['name']}: score {fields['score']:g} (best {fields['best']:g})")
        elif kind == "progress" and (phase := (fields["phase"], fields["candidate"])) != self._phase:
            self._phase = phase
            self._write(f"{fields['phase']} ({fields['candidate']} of {fields['candidates']} programs scored)")


class Bar:
    """A bar for the phase under way; scored programs stay above it."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID = progress.add_task("starting", total=None)

    def show(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Show one event."""
        if kind == "progress":
            best = fields.get("best")
            label = fields["phase"] if best is None else f"{fields['phase']} (best {best:g})"
            self._progress.update(
                self._task, description=label, completed=fields["done"], total=fields["total"] or None
            )
        elif kind == "candidate":
            self._progress.console.print(f"{fields['name']}: score {fields['score']:g}", markup=False)
