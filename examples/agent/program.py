"""An agent's tool that runs where the agent runs, in a worker; it is given by import path."""

from __future__ import annotations

_DAYS = {"Lisbon": 4, "Oslo": 2, "Vienna": 1}


def delivery_days(city: str) -> str:
    """Tell how many days the delivery of a parcel to a city takes."""
    if city not in _DAYS:
        raise ValueError(f"we deliver to {', '.join(_DAYS)} only, not to {city}")
    return f"A parcel to {city} takes {_DAYS[city]} days."
