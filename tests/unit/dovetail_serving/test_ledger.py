"""What the ledger adds up, and what replicas hand it."""

import asyncio
from typing import Any

from dovetail.ladder import Parts
from dovetail.measure import Link, Sample, Window
from dovetail_serving.ledger import SECONDS, Book
from dovetail_serving.report import MAX_CLASSES, MAX_DEVICES, MAX_REQUESTS, Reporter, clip

NOW = 1_000_000.0
RUNGS = ("cut1", "edge")


def window(count: int, rung: str = "cut1", seconds: float = 0.02) -> Window:
    """A window of `count` equal requests."""
    made = Window()
    for _ in range(count):
        made.add(Sample(rung, Parts(head=seconds), seconds, "ok", bytes_up=100))
    return made


def push(number: int, count: int, *, replica: str = "r1", **more: object) -> dict[str, Any]:
    """A replica's push of `count` requests."""
    return {
        "replica": replica,
        "deployment": "default/tiny",
        "version": "abc",
        "number": number,
        "windows": {"camera": window(count).dump()},
        "contacts": {"camera": NOW},
        "devices": {},
        "counts": {"requests": count},
        **more,
    }


def seen(book: Book, now: float = NOW, seconds: int = 60) -> int:
    """Requests the book knows of."""
    windows = book.read(seconds, now)["windows"]
    return Window.load(windows["default/tiny"]["camera"]).count if windows else 0


def test_pushes_of_several_replicas_and_seconds_add_up():
    """The operator reads one window for a whole pool."""
    book = Book()
    book.enter(push(1, 3), NOW)
    book.enter(push(1, 4, replica="r2"), NOW + 0.3)
    book.enter(push(2, 5), NOW + 1)

    found = book.read(60, NOW + 2)

    assert seen(book, NOW + 2) == 12
    assert found["counts"] == {"default/tiny": {"requests": 12}}
    assert found["contacts"] == {"default/tiny": {"camera": {"abc": NOW}}}


def test_a_push_that_is_sent_again_counts_once():
    """Its answer may have been lost on the way back."""
    book = Book()
    for _ in range(3):
        book.enter(push(1, 3), NOW)

    assert seen(book) == 3


def test_reading_takes_nothing_away():
    """Any number of readers see the same."""
    book = Book()
    book.enter(push(1, 3), NOW)

    assert book.read(60, NOW) == book.read(60, NOW)


def test_a_reader_sees_only_the_seconds_it_asks_for_and_old_ones_are_forgotten():
    """The ring is as long as the longest window, whatever happens."""
    book = Book()
    for second in range(3 * SECONDS):
        book.enter(push(second + 1, 1), NOW + second)
    last = NOW + 3 * SECONDS - 1

    assert seen(book, last, 10) == 11  # the second that runs, and ten before it
    assert seen(book, last, 10 * SECONDS) == SECONDS + 1


def test_what_one_post_claims_is_clipped_and_keeps_its_shape():
    """A device that claims a million requests counts as much as a busy one, no more."""
    claim = window(9 * MAX_REQUESTS, seconds=0.01)
    claim.merge(window(MAX_REQUESTS, rung="edge", seconds=1.0))

    kept = clip(claim, RUNGS)

    assert kept.count == MAX_REQUESTS
    assert kept.rungs["edge"].count == MAX_REQUESTS / 10
    assert 0.0098 < kept.rungs["cut1"].total.quantile(0.5) < 0.0102
    Window.load(kept.dump())  # what was thinned is still a window that does not deny itself


def test_rungs_that_the_bundle_does_not_have_are_left_out():
    """A name from outside must not become a key that stays."""
    kept = clip(window(3, rung="invented"), RUNGS)

    assert kept.rungs == {}


def test_a_link_seen_often_is_clipped_too():
    """Links are counted on their own."""
    claim = Window()
    for _ in range(2 * MAX_REQUESTS):
        claim.add_link(Link(0.01, 1e-6))

    assert clip(claim, RUNGS).rtt.count == MAX_REQUESTS


class Away:
    """A ledger that is away until it is told otherwise, and notes what it got."""

    def __init__(self) -> None:
        self.here, self.got = False, []

    async def __call__(self, report: dict[str, Any]) -> None:
        if not self.here:
            raise ConnectionError("away")
        self.got.append(report)


def test_what_was_seen_while_the_ledger_was_away_arrives_once_it_is_back():
    """A restart of the ledger loses only what it had itself."""
    ledger = Away()
    reporter = Reporter("r1", "default/tiny", "abc", RUNGS, ledger)

    async def main() -> None:
        for _ in range(3):
            reporter.samples("camera", window(2))
            reporter.contact("camera")
            reporter.count("requests", 2)
            await reporter.flush()
        ledger.here = True
        await reporter.flush()
        await reporter.flush()

    asyncio.run(main())
    book = Book()
    for report in ledger.got:
        book.enter(report, NOW)

    assert seen(book) == 6
    assert book.read(60, NOW)["counts"] == {"default/tiny": {"requests": 6}}


def test_a_push_that_failed_keeps_its_number():
    """The ledger may have entered it although the answer never came."""
    ledger, numbers = Away(), []

    async def record(report: dict[str, Any]) -> None:
        numbers.append(report["number"])
        await ledger(report)

    reporter = Reporter("r1", "default/tiny", "abc", RUNGS, record)

    async def main() -> None:
        reporter.count("requests")
        await reporter.flush()
        reporter.count("requests")
        await reporter.flush()
        ledger.here = True
        await reporter.flush()
        await reporter.flush()

    asyncio.run(main())

    assert numbers == [1, 1, 1, 2]


def test_invented_classes_cost_no_more_than_a_bounded_number():
    """An open tail takes any class a caller names."""
    ledger = Away()
    ledger.here = True
    reporter = Reporter("r1", "default/tiny", "abc", RUNGS, ledger)
    for number in range(3 * MAX_CLASSES):
        reporter.contact(f"class-{number}")
        reporter.samples(f"class-{number}", window(1))

    asyncio.run(reporter.flush())

    assert len(ledger.got[0]["contacts"]) == len(ledger.got[0]["windows"]) == MAX_CLASSES


def met(book: Book) -> dict[str, dict[str, Any]]:
    """The cameras a book knows of."""
    return book.read(60, NOW)["devices"].get("default/tiny", {}).get("camera", {})


def test_a_device_is_of_the_version_it_was_last_heard_on():
    """Two tails hear it while it changes over, and their pushes come in any order."""
    book = Book()
    book.enter(push(1, 1, replica="new", version="new", devices={"camera": {"a": NOW + 2}}), NOW)
    book.enter(push(1, 1, replica="old", version="old", devices={"camera": {"a": NOW + 1}}), NOW)

    assert met(book) == {"a": {"version": "new", "seen": NOW + 2}}


def test_of_too_many_devices_those_heard_longest_ago_are_forgotten():
    """An invented name a second must cost no more than a bounded number."""
    book = Book()
    crowd = {f"d{number}": NOW + number * 1e-3 for number in range(MAX_DEVICES)}
    book.enter(push(1, 1, devices={"camera": crowd}), NOW)
    book.enter(push(2, 1, devices={"camera": {"d0": NOW + 100, "late": NOW + 101}}), NOW)

    assert len(met(book)) == MAX_DEVICES
    assert {"d0", "late", "d2"} <= set(met(book))
    assert "d1" not in met(book)


def test_a_device_that_is_silent_for_a_day_is_forgotten():
    """Whoever left does not stay in the list for ever."""
    book = Book()
    book.enter(push(1, 1, devices={"camera": {"a": NOW}}), NOW)
    book.enter(push(2, 1), NOW + 2 * 24 * 3600)

    assert met(book) == {}


def test_a_push_carries_no_more_devices_than_the_ledger_keeps():
    """A replica's second is bounded too."""
    ledger = Away()
    ledger.here = True
    reporter = Reporter("r1", "default/tiny", "abc", RUNGS, ledger)
    for number in range(MAX_DEVICES + 10):
        reporter.contact("camera", f"d{number}")

    asyncio.run(reporter.flush())

    assert len(ledger.got[0]["devices"]["camera"]) == MAX_DEVICES
