"""Configuration: read once, at the edge, into one frozen `Settings` (loads pydantic and yaml)."""

from orchestrator.config.load import load, schema, this_machine
from orchestrator.config.settings import Limits, LMConfig, Settings
from orchestrator.config.view import show

__all__ = ["LMConfig", "Limits", "Settings", "load", "schema", "show", "this_machine"]
