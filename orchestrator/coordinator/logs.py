"""The coordinator's log: constant events with fields, on stderr; for people on a terminal, JSON lines elsewhere."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog


def configure_logs(level: str) -> None:
    """Set up structlog for this process. level: debug, info, warning or error."""
    to_people = sys.stderr.isatty()
    renderer: Any = structlog.dev.ConsoleRenderer() if to_people else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
