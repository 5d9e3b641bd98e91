"""Command line of the fuzzer; see `scripts/fuzz`."""

from __future__ import annotations

import argparse
import importlib.util
import sys

from tests.fuzz.run import fuzz

_ATHERIS = "atheris is not installed: `pip install atheris` into this Python, or --engine random"


def main() -> int:
    """Fuzz as the arguments say; return 0 where nothing failed."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000, help="in all; a fifth goes to a live coordinator")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, help="end earlier")
    parser.add_argument(
        "--engine", choices=("auto", "atheris", "random"), default="auto", help="auto: atheris if there"
    )
    options = parser.parse_args()
    there = importlib.util.find_spec("atheris") is not None
    if options.engine == "atheris" and not there:
        parser.error(_ATHERIS)
    guided = there and options.engine != "random"
    print(f"engine {'atheris' if guided else 'random'}, seed {options.seed}, {options.messages:,} messages", flush=True)
    ok = fuzz(options.messages, options.seed, minutes=options.minutes, guided=guided, say=_say)
    return 0 if ok else 1


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
