"""The events of a stream as they are taken: in order, none missing, none forgotten, no more than were asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from bridge.protocol.errors import SLOW_CONSUMER, BridgeError
from bridge.protocol.messages import Event
from bridge.protocol.values import Prediction, encode_value
from orchestrator.cli.streaming import as_lines, as_text
from orchestrator.client.stream import WINDOW, Feed, Final, Item, Progress, Status, Token
from orchestrator.errors import DspoolError, SlowConsumer, Unavailable, from_bridge


def event(sequence: int, kind: str = "token", fields: Mapping[str, Any] | None = None, epoch: int = 7) -> Event:
    payload = encode_value({"field": "answer", "text": f"{sequence} "} if fields is None else dict(fields))
    return Event(request_id=1, kind=kind, sequence=sequence, epoch=epoch, payload=payload)


def taken(feed: Feed) -> list[Item]:
    found = []
    while (item := feed.take(128)) is not None:
        found.append(item)
    return found


def test_events_become_items_in_order() -> None:
    feed = Feed()
    feed.add(event(1, fields={"field": "answer", "text": "a", "predictor": "self.ask"}))
    feed.add(event(2, "status", {"message": "Calling add…"}))
    feed.add(event(3, "candidate", {"score": 0.5}))
    assert len(feed) == 3
    assert taken(feed) == [
        Token("answer", "a", "self.ask"), Status("Calling add…"), Progress("candidate", {"score": 0.5}),
    ]  # fmt: skip
    assert len(feed) == 0


def test_a_missing_event_is_an_error() -> None:
    feed = Feed()
    for number in (1, 2, 4):
        feed.add(event(number))
    assert feed.take(128) == Token("answer", "1 ")
    assert feed.take(128) == Token("answer", "2 ")
    with pytest.raises(DspoolError, match="number 3 is missing: 4 came"):
        feed.take(128)


def test_the_first_event_may_not_be_missing_either() -> None:
    feed = Feed()
    feed.add(event(2))
    with pytest.raises(DspoolError, match="number 1 is missing"):
        feed.take(128)


def test_another_attempt_begins_anew() -> None:
    feed = Feed()
    feed.add(event(1, epoch=7))
    feed.add(event(2, epoch=7))
    feed.add(event(1, epoch=9))
    assert taken(feed) == [
        Token("answer", "1 "), Token("answer", "2 "), Progress("restarted", {}), Token("answer", "1 "),
    ]  # fmt: skip


def test_what_was_taken_of_a_lost_attempt_is_no_credit_for_the_next() -> None:
    feed = Feed()
    for number in range(1, 16):
        feed.add(event(number))
    taken(feed)
    feed.add(event(1, epoch=9))
    taken(feed)
    assert feed.due_credit() == 0


def test_credit_is_given_by_the_quarter_window() -> None:
    feed, due = Feed(), []
    for number in range(1, 2 * WINDOW + 1):
        feed.add(event(number))
        assert feed.take(128) is not None
        due.append(feed.due_credit())
    assert sum(due) == 2 * WINDOW
    assert [credit for credit in due if credit] == [WINDOW // 4] * 8


def test_a_flood_is_bounded_and_told() -> None:
    feed = Feed()
    for number in range(1, 10 * WINDOW):
        feed.add(event(number))
    assert len(feed) == 4 * WINDOW
    with pytest.raises(DspoolError, match="nobody had asked for"):
        taken(feed)


def test_who_has_left_keeps_nothing() -> None:
    feed = Feed()
    feed.add(event(1))
    feed.close()
    feed.add(event(2))
    assert len(feed) == 0


def test_an_event_that_cannot_be_read_is_an_error() -> None:
    feed = Feed()
    feed.add(Event(request_id=1, kind="token", sequence=1, epoch=7, payload=b"\xc1"))
    with pytest.raises(DspoolError):
        feed.take(128)


def test_a_listener_is_told_once() -> None:
    feed, told = Feed(), []
    feed.listener = lambda: told.append(1)
    feed.add(event(1))
    feed.add(event(2))
    assert told == [1]


def test_a_slow_consumer_has_an_error_of_its_own() -> None:
    error = from_bridge(BridgeError(SLOW_CONSUMER, "not read"))
    assert type(error) is SlowConsumer
    assert isinstance(error, Unavailable)


# --- on the command line ----------------------------------------------------------------------


def shown(*items: Item) -> tuple[str, list[str]]:
    written: list[str] = []
    said: list[str] = []
    as_text(items, said.append, written.append)
    return "".join(written), said


def test_text_has_a_heading_where_the_field_changes() -> None:
    value = Prediction({"reasoning": "so it is", "answer": "yes", "score": 3})
    text, said = shown(
        Status("Calling ask…"), Token("reasoning", "so"), Token("reasoning", " it is"), Token("answer", "yes"),
        Progress("row", {"done": 1}), Final(value),
    )  # fmt: skip
    assert text == "reasoning: so it is\nanswer: yes\nscore: 3\n"
    assert said == ["Calling ask…", 'row: {"done": 1}']


def test_a_value_that_was_not_streamed_is_shown_whole() -> None:
    assert shown(Final(Prediction({"answer": "yes"})))[0] == "answer: yes\n"
    assert shown(Final([1, 2]))[0] == "[\n  1,\n  2\n]\n"
    assert shown(Token("thought", "hm"), Final("done"))[0] == "thought: hm\ndone\n"


def test_lines_are_json() -> None:
    written: list[str] = []
    items: list[Item] = [Token("a", "ö\n", "p"), Status("s"), Progress("k", {"n": 1}), Final(Prediction({"a": 1}))]
    as_lines(items, lambda meta: meta, written.append)
    assert all(line.endswith("\n") and line.count("\n") == 1 for line in written)
    assert [json.loads(line) for line in written] == [
        {"type": "token", "field": "a", "text": "ö\n", "predictor": "p"},
        {"type": "status", "message": "s"},
        {"type": "progress", "kind": "k", "fields": {"n": 1}},
        {"type": "final", "value": {"a": 1}, "meta": None},
    ]
