"""The table of versions: which names stand for which, what a message changes, and which programs stay in memory."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple, cast

import pytest

from bridge.protocol.errors import BridgeError
from bridge.protocol.messages import Program
from bridge.protocol.names import bare
from bridge.protocol.values import encode_value
from bridge.worker.versions import Version, Versions


class Fake(NamedTuple):
    """What stands for a loaded program."""

    found: Any = None
    is_async: bool = False
    module: str = "module"


def table(max_loaded: int = 64) -> Versions:
    return Versions(cast("Any", lambda version: version), max_loaded=max_loaded)


def tell(versions: Versions, number: int, *aliases: str, name: str = "qa", **spec: Any) -> None:
    payload = encode_value({"target": "m:X", "sha256": f"sha {number}", **spec})
    versions.define(Program(name=name, program_version=number, payload=payload, aliases=list(aliases)))


def forget(versions: Versions, number: int, name: str = "qa") -> None:
    versions.define(Program(name=name, program_version=number, payload=b""))


def known(versions: Versions) -> dict[str, int]:
    names = ("qa", "qa@live", "qa@canary", *(f"qa@{number}" for number in range(10)))
    return {name: found.number for name in names if (found := versions.find(name)) is not None}


def load(versions: Versions, version: Version) -> None:
    versions.keep(version, cast("Any", Fake()))


def test_a_version_and_its_names() -> None:
    versions = table()
    tell(versions, 7, "live", "canary")
    assert known(versions) == {"qa": 7, "qa@live": 7, "qa@canary": 7, "qa@7": 7}
    assert versions.names() == ["qa"]


@pytest.mark.parametrize("new_first", [True, False])
def test_a_swap_in_either_order_of_messages(new_first: bool) -> None:
    versions = table()
    tell(versions, 1, "live", "canary")
    changes = [(2, "live"), (1, "canary")]
    for number, alias in changes if new_first else reversed(changes):
        tell(versions, number, alias)
    assert known(versions) == {"qa": 2, "qa@live": 2, "qa@canary": 1, "qa@1": 1, "qa@2": 2}
    forget(versions, 1)
    assert known(versions) == {"qa": 2, "qa@live": 2, "qa@2": 2}


def test_a_version_that_warms_up_has_no_name_but_its_own() -> None:
    versions = table()
    tell(versions, 1, "live")
    tell(versions, 2)
    assert known(versions) == {"qa": 1, "qa@live": 1, "qa@1": 1, "qa@2": 2}
    forget(versions, 2)
    assert known(versions) == {"qa": 1, "qa@live": 1, "qa@1": 1}


def test_a_version_of_the_same_content_stays_what_it_is() -> None:
    versions = table()
    tell(versions, 1, "live")
    first = versions.find("qa")
    tell(versions, 1, "canary", note="said later")
    assert versions.find("qa@1") is first
    assert known(versions) == {"qa@canary": 1, "qa@1": 1}
    tell(versions, 1, "live", sha256="other")
    assert versions.find("qa") is not first


def test_the_end_of_all_versions() -> None:
    versions = table()
    tell(versions, 1, "live")
    tell(versions, 2, "canary")
    tell(versions, 1, "live", name="other")
    forget(versions, 0)
    assert known(versions) == {}
    assert versions.names() == ["other"]
    forget(versions, 0)  # of what is not there


def test_a_payload_that_is_none_is_told_when_it_is_needed() -> None:
    versions = table()
    versions.define(Program(name="qa", program_version=1, payload=b"\xc1", aliases=["live"]))
    found = versions.find("qa")
    assert found is not None
    with pytest.raises(BridgeError):
        _ = found.spec


def test_what_was_called_the_longest_ago_makes_room() -> None:
    versions = table(max_loaded=2)
    for number in (1, 2, 3):
        tell(versions, number)
    one, two, three = (versions.find(f"qa@{number}") for number in (1, 2, 3))
    assert one is not None
    assert two is not None
    assert three is not None
    load(versions, one)
    load(versions, two)
    versions.touch(one)
    load(versions, three)
    assert [version.module for version in (one, two, three)] == ["module", None, "module"]
    load(versions, two)
    assert [version.module for version in (one, two, three)] == [None, "module", "module"]


def test_forgotten_versions_take_no_room() -> None:
    versions = table(max_loaded=2)
    for number in range(1, 10):
        tell(versions, number, "live")
        version = versions.find("qa")
        assert version is not None
        load(versions, version)
        forget(versions, number - 1)
    tell(versions, 1, "live", name="other")
    other = versions.find("other")
    assert other is not None
    load(versions, other)
    assert known(versions) == {"qa": 9, "qa@live": 9, "qa@9": 9}
    assert [version.module for version in (versions.find("qa"), other) if version] == ["module"] * 2


def test_a_version_that_is_forgotten_while_it_loads_is_not_kept() -> None:
    versions = table(max_loaded=1)
    tell(versions, 1, "live")
    late = versions.find("qa")
    assert late is not None
    tell(versions, 2, "live")
    kept = versions.find("qa")
    assert kept is not None
    load(versions, kept)
    forget(versions, 1)
    load(versions, late)
    assert kept.module == "module", "it took the place of nobody"


def test_a_live_name_is_never_missing_while_versions_change() -> None:
    versions = table()
    tell(versions, 1, "live")
    missing: list[int] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            if versions.find("qa") is None or versions.find("qa@live") is None:
                missing.append(1)

    thread = threading.Thread(target=look)
    thread.start()
    for number in range(2, 500):
        tell(versions, number, "live")
        forget(versions, number - 1)
    stop.set()
    thread.join()
    assert missing == []


@pytest.mark.parametrize(
    ("operation", "name"), [("qa@7", "qa"), ("qa@live", "qa"), ("qa", "qa"), ("dspy.Predict", "dspy.Predict")]
)
def test_the_name_without_its_version(operation: str, name: str) -> None:
    assert bare(operation) == name
