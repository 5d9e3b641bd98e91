"""The command line of chaos: `python -m orchestrator.chaos --help`."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Final

from bridge.faultpoints import ACTIONS
from orchestrator.chaos.numbers import count, positive
from orchestrator.chaos.plan import KINDS
from orchestrator.chaos.run import PROFILES, Order, run
from orchestrator.chaos.sweep import SWEPT, sweep

# Options without effect where fault points are tried.
_OF_A_RUN: Final = ("requests", "minutes", "every", "clients", "kinds", "profile")


def main(argv: list[str] | None = None) -> int:
    """Run, print what came of it; return 1 where a promise was broken."""
    wanted = _arguments(argv)
    if _is_sweep(wanted):
        return _sweep(wanted)
    report = run(
        Order(
            seed=wanted.seed, requests=wanted.requests or float("inf"), seconds=_seconds(wanted),
            every_s=wanted.every, clients=wanted.clients, kinds=tuple(wanted.kinds), profile=wanted.profile,
        ),
        tell=lambda line: print(line, file=sys.stderr, flush=True),
    )  # fmt: skip
    print(json.dumps(report.as_json()) if wanted.json else report.text())
    return 0 if report.good else 1


def _is_sweep(wanted: argparse.Namespace) -> bool:
    return bool(wanted.sweep or wanted.point or wanted.action)


def _sweep(wanted: argparse.Namespace) -> int:
    cells = []
    points, actions = ([one] if one else all_ for one, all_ in ((wanted.point, SWEPT), (wanted.action, ACTIONS)))
    print(f"faults to try: {len(points) * len(actions)}", file=sys.stderr, flush=True)
    for cell in sweep(wanted.seed, points, actions):
        cells.append(cell)
        if not wanted.json:
            print(cell.line(), flush=True)
    broken = [cell for cell in cells if not cell.good]
    if wanted.json:
        print(json.dumps([{"point": each.point, "action": each.action, "fired": each.fired is not None,
                           **each.report.as_json(), "good": each.good} for each in cells]))  # fmt: skip
    else:
        print(f"{len(cells)} faults, {len(broken)} broken")
    return 1 if broken else 0


def _seconds(wanted: argparse.Namespace) -> float:
    if wanted.minutes is not None:
        return float(wanted.minutes) * 60.0
    return float("inf") if wanted.requests else 60.0


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description="A system under fire, and what its users saw.")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the plan; the same one is the same plan")
    parser.add_argument("--requests", type=count, metavar="N", help="end after so many requests")
    parser.add_argument("--minutes", type=positive, metavar="M", help="end after so long (1, where no --requests are)")
    parser.add_argument("--every", type=positive, default=2.0, metavar="S", help="between two deeds on average (2)")
    parser.add_argument("--clients", type=count, default=4, metavar="N", help="client processes (4)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--profile", choices=PROFILES, default="bare", help="what protects the pool (bare: nothing)")
    parser.add_argument("--sweep", action="store_true", help="instead, try every fault point with every action")
    parser.add_argument(
        "--point",
        choices=SWEPT,
        metavar="POINT",
        help=f"instead, this point with every action, or that of --action: {', '.join(SWEPT)}",
    )
    parser.add_argument(
        "--action", choices=ACTIONS, help="instead, this action at every fault point, or that of --point"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    wanted = parser.parse_args(argv)
    if _is_sweep(wanted):
        for name in _OF_A_RUN:
            if getattr(wanted, name) != parser.get_default(name):
                parser.error(f"--{name} is not for runs of fault points (--sweep, --point, --action)")
    return wanted


if __name__ == "__main__":
    sys.exit(main())
