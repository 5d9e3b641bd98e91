"""Errors at the caller: that it is the right class, with its code, and says what its reader needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from orchestrator.errors import DspoolError

E = TypeVar("E", bound=DspoolError)


def failing(kind: type[E], call: Callable[[], object], *said: str, **attributes: Any) -> E:
    """Return the error of a call.

    It is of this very class, has the class's code, says everything in `said`, and has these attributes.
    """
    with pytest.raises(DspoolError) as caught:
        call()
    error = caught.value
    assert type(error) is kind, f"{type(error).__name__}: {error}"
    assert error.code == kind.CODE
    for words in said:
        assert words in str(error)
    for name, value in attributes.items():
        assert getattr(error, name) == value, f"{name} of {error!r} is {getattr(error, name)!r}"
    return error
