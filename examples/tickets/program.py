"""A support desk: which team does a ticket go to?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import dspy

Team = Literal["hardware", "identity", "payments", "shipping", "software"]


class RouteTicket(dspy.Signature):
    """Choose the team that answers a customer's ticket."""

    ticket: str = dspy.InputField(desc="what the customer wrote")
    team: Team = dspy.OutputField(desc="the team that answers it")


class TicketRouter(dspy.Module):
    """Routes one ticket: `TicketRouter()(ticket="…").team`."""

    def __init__(self) -> None:
        super().__init__()
        self.route = dspy.Predict(RouteTicket)

    def forward(self, ticket: str) -> dspy.Prediction:
        return self.route(ticket=ticket)


def same_team(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool:
    """The metric: the right team, exactly."""
    return bool(example.team == prediction.team)


def load(part: Literal["train", "validation", "test"]) -> list[dspy.Example]:
    """Return the examples of one part of the data set, the ticket being their input."""
    lines = (Path(__file__).parent / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
    return [dspy.Example(**json.loads(line)).with_inputs("ticket") for line in lines]
