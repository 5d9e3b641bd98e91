"""An echo beside the services process is measured in full. How fast it is is no test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.bench.services import MOST_MEDIANS
from orchestrator.cli.app import app
from orchestrator.cli.failure import Exit


@pytest.mark.slow
def test_an_echo_beside_busy_services_is_measured(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    done = CliRunner().invoke(app, ["bench", "--services", "--seconds=0.2", "--rounds=2", f"--json={file}"])
    found = json.loads(file.read_text())
    assert done.exit_code == (Exit.DONE if found["passed"] else Exit.FAILED), done.output
    assert found["settings"] == {"seconds": 0.2, "rounds": 2, "workers": 2}
    figures = {figure["name"]: figure for figure in found["figures"]}
    assert list(figures) == [
        f"echo, services {way}: {what}" for way in ("idle", "busy") for what in ("p50", "p99", "p99 / p50")
    ]
    limits = {name: figure["limit"] for name, figure in figures.items() if figure["limit"] is not None}
    assert limits == {"echo, services busy: p99 / p50": MOST_MEDIANS}
    for figure in figures.values():
        assert len(figure["runs"]) == 2
        assert min(figure["runs"]) > 0
    for way in ("idle", "busy"):
        assert figures[f"echo, services {way}: p50"]["value"] <= figures[f"echo, services {way}: p99"]["value"]
    assert ("PASS" if found["passed"] else "FAIL") in done.output
