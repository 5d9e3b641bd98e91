"""`scripts/simulate`: histories by the thousand, or one of them told in full."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Final

from tests.sim.campaign import Campaign, run
from tests.sim.coverage import missing
from tests.sim.history import Failure, play
from tests.sim.schedule import parse
from tests.sim.shrink import shrink
from tests.sim.story import Story

_SEEDS: Final = 1 << 40


def _summary(campaign: Campaign, smallest: Failure | None) -> dict[str, object]:
    steps = sum(count for name, count in campaign.seen.items() if name[0].isupper())
    return {
        "seed": campaign.seed,
        "histories": campaign.histories,
        "seconds": round(campaign.seconds, 1),
        "events": steps,
        "broken": None if smallest is None else {
            "invariant": smallest.invariant, "detail": smallest.detail, "replay": smallest.replay,
            "moves": [str(move) for move in smallest.schedule.moves],
        },
        "never_happened": missing(campaign.seen),
        "happened": dict(sorted(campaign.seen.items())),
    }  # fmt: skip


def _tell(campaign: Campaign, smallest: Failure | None) -> None:
    print("\nwhat happened:")
    for name, count in sorted(campaign.seen.items()):
        print(f"  {count:>12,}  {name}")
    for name in missing(campaign.seen):
        print(f"  {'never':>12}  {name}")
    print(f"\n{campaign.histories:,} histories from seed {campaign.seed} in {campaign.seconds:.1f} s", end=": ")
    if smallest is None:
        print("no invariant broken")
    else:
        print(f"one broke an invariant\n\n{smallest.report()}")


def _replay(name: str) -> int:
    schedule = parse(name)
    story = Story()
    failure = play(schedule, Counter(), story)
    if failure is not None:
        print(failure.report())
        return 1
    print("\n".join(["no invariant broken", "", *story.latest()]))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 1 if an invariant broke."""
    parser = argparse.ArgumentParser(prog="scripts/simulate", description=__doc__)
    parser.add_argument("--seed", type=int, help="of the first history; without it, one by chance")
    parser.add_argument("--histories", type=int, help="how many (20,000 where no time is given)")
    parser.add_argument("--seconds", type=float, help="how long at most")
    parser.add_argument("--jobs", type=int, default=1, help="processes that play")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON alone")
    parser.add_argument("--replay", metavar="SEED[:MOVES]", help="play one history and tell it")
    options = parser.parse_args(arguments)
    if options.replay is not None:
        return _replay(options.replay)
    seed = secrets.randbelow(_SEEDS) if options.seed is None else options.seed
    histories = 20_000 if options.histories is None and options.seconds is None else options.histories
    campaign = run(seed, histories, options.seconds, options.jobs, quiet=options.json)
    smallest = None if campaign.failure is None else shrink(campaign.failure)
    if options.json:
        print(json.dumps(_summary(campaign, smallest), indent=2))
    else:
        _tell(campaign, smallest)
    return 0 if smallest is None else 1


if __name__ == "__main__":
    sys.exit(main())
