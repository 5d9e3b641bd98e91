"""The command `dspool`. Only this package imports typer and rich."""

from __future__ import annotations


def main() -> None:
    """Run the command line: the entry point of the console script."""
    from orchestrator.cli.app import app

    app(prog_name="dspool")
