"""Ask a program that retrieves before it answers."""

from __future__ import annotations

import argparse
from pathlib import Path

from orchestrator import connect

PROGRAM = f"{Path(__file__).parent}/program.py:RAG"
QUESTIONS = (
    "When does the ferry to Sandholm leave Nordhavn?",
    "What does it cost to rent bicycles at the harbour?",
    "Where may tents be put up?",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lm", help="a language model of the coordinator's configuration (the default one)")
    lm = parser.parse_args().lm
    with connect() as client:
        client.deploy("rag", PROGRAM, config={"k": 2})
        for question in QUESTIONS:
            found = client.program("rag", lm=lm)(question=question)
            print(f"{question}\n  {found.answer}")
            for passage in found.passages:
                print(f"  from: {passage}")
        client.undeploy("rag")


if __name__ == "__main__":
    main()
