"""Classify messages side by side in the workers, before and after a few examples are shown to the program."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from orchestrator import Client, connect

HERE = Path(__file__).parent
PROGRAM = f"{HERE}/program.py:Classifier"


def rows(name: str) -> list[dict[str, str]]:
    """Read the rows of a file."""
    return [json.loads(line) for line in (HERE / name).read_text(encoding="utf-8").splitlines()]


def classify(client: Client, program: str, messages: list[dict[str, str]], lm: str | None) -> int:
    """Classify all messages, print what came, and return how many are right."""
    asked: list[dict[str, Any]] = [{"message": row["message"]} for row in messages]
    found = list(client.map(program, asked, lm=lm))
    for row, prediction in zip(messages, found, strict=True):
        mark = "+" if prediction.topic == row["topic"] else "-"
        print(f"  {mark} {prediction.topic:<10} {row['message']}")
    right = sum(prediction.topic == row["topic"] for row, prediction in zip(messages, found, strict=True))
    print(f"  {right} of {len(messages)} are right")
    return right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lm", help="a language model of the coordinator's configuration (the default one)")
    lm = parser.parse_args().lm
    test = rows("test.jsonl")
    with connect() as client:
        client.deploy("classification", PROGRAM)
        print("without examples")
        classify(client, "classification", test, lm)
        job = client.optimize(
            "classification", optimizer="LabeledFewShot", trainset=rows("train.jsonl"), metric="exact:topic",
            params={"k": 12}, lm=lm,
        )  # fmt: skip
        version = job.result(timeout=120).deploy("classification")
        print(f"with 12 examples (version {version.version} of the program)")
        classify(client, "classification", test, lm)
        client.undeploy("classification")


if __name__ == "__main__":
    main()
