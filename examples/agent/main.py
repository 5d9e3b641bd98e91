"""An agent with two tools: a function of this process, and one that runs in the worker."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from orchestrator import connect

HERE = Path(__file__).parent
STOCK = {"lamp": 3, "chair": 0}
QUESTIONS = ('How many pieces of the article "lamp" are in stock?', "How long does the delivery to Oslo take?")
calls: list[str] = []


def stock(article: str) -> str:
    """Tell how many pieces of an article are in stock."""
    # It runs in this process: what is in memory here, open or secret, it can use.
    calls.append(f"stock({article!r}) ran in process {os.getpid()}, this one")
    return f"There are {STOCK[article]} pieces of {article} left."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lm", help="a language model of the coordinator's configuration (the default one)")
    lm = parser.parse_args().lm
    with connect() as client:
        tools = [stock, f"{HERE}/program.py:delivery_days"]
        agent = client.module("dspy.ReAct", "question -> answer", tools=tools, lm=lm)
        for question in QUESTIONS:
            found = agent(question=question)
            print(f"{question}\n  {found.answer}")
            steps = found.trajectory
            names = [steps[key] for key in sorted(steps) if key.startswith("tool_name_")]
            print(f"  by {' -> '.join(names)}, on {found.meta.worker}, with {found.meta.lm_calls} LM calls")
    print("\n".join(calls))


if __name__ == "__main__":
    main()
