"""What a ledger's answer becomes: times of ours, versions by whoever reported them last."""

import pytest

from dovetail.errors import InvalidMessage
from dovetail.measure import Window
from dovetail_operator.ledger import parse

VERSION = "ab" * 6


def answer(**more):
    return {"now": 1000.0, "windows": {"a/b": {"camera": Window().dump()}}, **more}


def test_a_ledgers_clock_that_is_off_makes_no_device_older():
    """Verify that times are moved by what the two clocks differ."""
    devices = {"a/b": {"camera": {"one": {"version": VERSION, "seen": 990.0}}}}

    reading = parse(answer(devices=devices), 5000.0)

    assert reading.presence("a/b")["camera"].last == 4990.0
    assert reading.versions["a/b"] == {VERSION: 4990.0}


def test_devices_count_as_connected_for_a_minute():
    """Verify both counts, and that nobody was heard of where nobody was."""
    known = {
        "one": {"version": VERSION, "seen": 999.0},
        "two": {"version": VERSION, "seen": 900.0},
    }

    reading = parse(answer(devices={"a/b": {"camera": known}}), 1000.0)

    camera = reading.presence("a/b")["camera"]
    assert (camera.known, camera.connected) == (2, 1)
    assert reading.presence("c/d") == {}


def test_a_version_is_reported_by_the_last_who_did():
    """Verify that contacts of a class and devices by name count alike, by whole digest or not."""
    devices = {"a/b": {"camera": {"one": {"version": f"sha256:{'ab' * 32}", "seen": 950.0}}}}
    contacts = {"a/b": {"camera": {VERSION: 990.0}, "phone": {"cd" * 6: 1.0}}}

    reading = parse(answer(devices=devices, contacts=contacts), 1000.0)

    assert reading.versions["a/b"] == {VERSION: 990.0, "cd" * 6: 1.0}


@pytest.mark.parametrize(
    "document",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"now": "late", "windows": {}}, id="a time that is none"),
        pytest.param(answer(devices={"a/b": {"camera": ["one"]}}), id="devices without versions"),
        pytest.param(answer(windows={"a/b": {"camera": {}}}), id="a window that is none"),
    ],
)
def test_what_is_no_answer_is_refused(document):
    """Verify that a pool that says something else is one that does not answer."""
    with pytest.raises(InvalidMessage):
        parse(document, 1.0)
