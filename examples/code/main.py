"""Let a model answer by a program of its own; without a sandbox, see what is refused and why."""

from __future__ import annotations

import argparse
from pathlib import Path

from orchestrator import connect, errors

PROGRAM = f"{Path(__file__).parent}/program.py:Calculator"
QUESTION = "A crate holds 24 bottles. How many bottles are 17 * 24 + 5?"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lm", help="a language model of the coordinator's configuration (the default one)")
    lm = parser.parse_args().lm
    with connect() as client:
        client.deploy("code", PROGRAM)
        try:
            found = client.program("code", lm=lm)(question=QUESTION)
        except errors.SandboxMissing as error:
            print(f"refused ({error.code}): {error}")
            print("Code that a model wrote never runs in a worker itself: it could read what the worker can.")
        else:
            print(f"{QUESTION}\n  {found.answer:g}, computed in a sandbox")
        client.undeploy("code")


if __name__ == "__main__":
    main()
