"""Ask what takes more than one search."""

from __future__ import annotations

import argparse
from pathlib import Path

from orchestrator import connect

PROGRAM = f"{Path(__file__).parent}/program.py:MultiHop"
QUESTIONS = ("On which river lies the village where the painter Ida Brandt was born?",)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lm", help="a language model of the coordinator's configuration (the default one)")
    lm = parser.parse_args().lm
    with connect() as client:
        client.deploy("multihop", PROGRAM, config={"hops": 2})
        for question in QUESTIONS:
            found = client.program("multihop", lm=lm)(question=question)
            print(question)
            for number, note in enumerate(found.notes, 1):
                print(f"  hop {number}: {note}")
            print(f"  answer: {found.answer}   ({found.meta.lm_calls} LM calls)")
        client.undeploy("multihop")


if __name__ == "__main__":
    main()
