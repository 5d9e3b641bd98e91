"""How a coordinator is, as lines for people: what `Client.health` returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.cli.plain import duration


def headline(health: Mapping[str, Any]) -> str:
    """Return the state in one line: status, mode where it is not normal, and the issues' names."""
    mode = f", in {health['mode']} mode" if health["mode"] != "normal" else ""
    names = ", ".join(f"{issue['name']} {issue['subject']}".rstrip() for issue in health["issues"])
    return f"health: {health['status']}{mode}" + (f"; {names}" if names else "")


def lines(health: Mapping[str, Any]) -> list[str]:
    """Return the state, then two lines for each issue: what is wrong, and what is or may be done about it."""
    rate = health["error_rate"]
    failed = (
        "no request in the last minute" if rate is None else f"{rate * 100:.1f} % of the last minute's requests failed"
    )
    told = [f"health: {health['status']}, mode {health['mode']}, {failed}"]
    for issue in health["issues"]:
        name = f"{issue['name']} {issue['subject']}".rstrip()
        told.append(f"  {issue['level']}: {name} for {duration(issue['since_s'])}: {issue['text']}")
        told.append(f"    {issue['action']}")
    return told
