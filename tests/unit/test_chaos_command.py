"""The command lines of chaos and soak: what makes no sense is refused before anything is started."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from orchestrator.chaos import __main__ as chaos
from orchestrator.chaos import soak

CHAOS, SOAK = chaos.main, soak.main


@pytest.mark.parametrize(
    ("main", "option", "value"),
    [
        *((CHAOS, option, value) for option in ("--requests", "--clients") for value in ("0", "-1", "1.5", "many")),
        *((CHAOS, option, value) for option in ("--minutes", "--every") for value in ("0", "-1", "nan", "inf", "x")),
        *((SOAK, "--calls", value) for value in ("0", "-1", "x")),
        *((SOAK, "--minutes", value) for value in ("0", "-1", "nan", "x")),
        *((SOAK, "--kill-percent", value) for value in ("-1", "101", "nan", "x")),
    ],
    ids=lambda value: value.__module__.rpartition(".")[2] if callable(value) else value,
)
def test_a_number_that_makes_no_sense_is_refused(
    main: Callable[[list[str]], int], option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([f"{option}={value}"])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert f"argument {option}: must be a " in told
    assert f"got {value}\n" in told


@pytest.mark.parametrize("other", ["--requests=5", "--minutes=1", "--profile=full", "--kinds=hang", "--clients=1"])
@pytest.mark.parametrize("sweep", ["--sweep", "--point=zygote.before_fork", "--action=kill"])
def test_fault_points_are_tried_in_runs_of_their_own(
    sweep: str, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        CHAOS([sweep, other])
    assert ended.value.code == 2
    assert f"{other.partition('=')[0]} is not for runs of fault points" in capsys.readouterr().err
