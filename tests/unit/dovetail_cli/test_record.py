"""What is made of what edges say of themselves."""

import math
from typing import Any

import pytest

from dovetail.control import Move
from dovetail.ladder import Parts
from dovetail.measure import Sample, Window
from dovetail_cli.link import LinkSpec, Trace
from dovetail_cli.local.record import Point, Record, all_moves, difference, merged, overall
from dovetail_cli.local.summary import phase_table, phases, summarise, table


def _status(window: Window, *moves: Move) -> dict[str, Any]:
    """What `GET /dovetail/status` says, as far as it is read here."""
    told = [move.model_dump(mode="json", by_alias=True) for move in moves]
    return {"totals": window.dump(), "moves": told, "rung": "edge"}


def _sample(rung: str, seconds: float, outcome: Any = "ok", up: int = 10) -> Sample:
    return Sample(rung, Parts(head=seconds), seconds, outcome, bytes_up=up)


def _window(*samples: Sample) -> Window:
    window = Window()
    for sample in samples:
        window.add(sample)
    return window


def test_the_difference_of_two_states_is_what_happened_between_them() -> None:
    """Adding it to the earlier state gives the later one; unchanged rungs are left out."""
    first = _window(_sample("edge", 0.1), _sample("cut1", 0.2))
    later = merged((first, _window(_sample("cut1", 0.4), _sample("cut1", 0.5, "degraded"))))

    between = difference(later, first)

    assert set(between.rungs) == {"cut1"}
    assert between.rungs["cut1"].outcomes["degraded"] == 1
    assert merged((first, between)).dump()["rungs"] == later.dump()["rungs"]


def test_an_edge_that_starts_again_goes_on_counting_where_it_ended() -> None:
    """Counts that fall are a new process, and nothing is lost or counted twice."""
    record, after = Record("camera"), _status(_window(_sample("cut1", 0.1)))

    record.take(_status(_window(_sample("edge", 0.1), _sample("edge", 0.1))), 1.0)
    record.take({}, 2.0)
    record.take(after, 3.0)
    record.take(after, 3.5)

    assert record.totals.count == 3
    assert {name: w.count for name, w in record.totals.rungs.items()} == {"edge": 2, "cut1": 1}


def test_recent_figures_forget_what_was_before() -> None:
    """The window on screen ends with the last look and reaches a few seconds back."""
    record, window = Record("camera"), Window()
    for second in range(20):
        window.add(_sample("edge", 1.0 if second < 10 else 0.1))
        record.take(_status(window), float(second))

    recent = overall(record.recent(5.0))

    assert recent.count == 5
    assert recent.total.quantile(1.0) == pytest.approx(0.1, rel=0.05)


def test_moves_of_both_hands_are_kept_once_and_in_order() -> None:
    """An edge repeats its last moves in every status."""
    record, moves = Record("camera"), list[Move]()
    for at in (3.0, 1.0, 2.0):
        moves.append(Move(at=at, source="a", target="b", reason="Faster", message=""))
        record.take(_status(Window(), *moves), at)

    assert [move.at for move in record.moves] == [1.0, 2.0, 3.0]


def test_a_move_that_follows_a_plan_is_told_once() -> None:
    """The slow hand's own account has the figures; the edge only says that it followed."""
    planned = Move(at=1.0, source="a", target="b", reason="Faster", message="10 ms against 20 ms")
    followed = Move(at=1.5, source="a", target="b", reason="Plan", message="plan 2")
    own = Move(at=0.5, source="c", target="a", reason="Faster", message="")

    assert all_moves([own, followed], [planned]) == [own, planned]


def test_without_a_driver_points_are_medians_between_two_looks() -> None:
    """Something is drawn although nobody timed single requests."""
    record = Record("camera")
    record.take(_status(Window()), 0.0)
    record.take(_status(_window(*(_sample("edge", s) for s in (0.1, 0.2, 0.9)))), 1.0)

    [point] = record.points
    assert (point.at, point.rung) == (1.0, "edge")
    assert point.seconds == pytest.approx(0.2, rel=0.05)


def test_a_summary_counts_what_the_edge_and_the_caller_saw() -> None:
    """Requests that never reached an edge are failed ones too; shares are over answers."""
    record = Record("camera", driven=True)
    record.take(_status(_window(_sample("edge", 0.1), _sample("cut1", 0.3, "degraded"))), 1.0)
    record.points.extend(
        [
            Point(1.0, 0.1, "edge", agrees=True, right=True, error=0.0),
            Point(2.0, 0.3, "cut1", degraded=True, agrees=True, right=False, error=0.01),
            Point(3.0, 9.0, "", failed="no edge answers"),
        ]
    )

    found = summarise(record, [], 7)

    assert (found["requests"], found["failed"], found["degraded"]) == (2, 1, 1)
    assert (found["agreement"], found["accuracy"], found["maxError"]) == (1.0, 0.5, 0.01)
    assert found["p50Ms"] == pytest.approx(200.0)
    assert [rung["rung"] for rung in found["rungs"]] == ["edge", "cut1"]
    assert len(table([found]).splitlines()) == 4


def test_phases_follow_the_trace_up_to_the_end() -> None:
    """Each link has the median and the rung of its own time; a link never reached is left out."""
    record = Record("camera")
    record.points.extend(Point(100.0 + s, 0.1 * (1 + s // 10), "edge") for s in range(20))
    links = (LinkSpec(1e6, 0.01), LinkSpec(1e5, 0.05), LinkSpec(1e6, 0.01))

    found = phases([record], Trace((0.0, 10.0, 60.0), links), 100.0, 20.0)

    assert [phase["p50Ms"]["camera"] for phase in found] == [100.0, 200.0]
    assert found[1]["rung"] == {"camera": "edge"}
    assert "200.0 (edge)" in phase_table(found)


def test_an_empty_record_summarises_to_nothing_rather_than_to_an_error() -> None:
    """Ctrl-C before the first request still ends with a summary."""
    found = summarise(Record("camera"), [], 1)

    assert found["requests"] == 0
    assert found["p50Ms"] is None
    assert math.isnan(overall(Record("camera").recent(5.0)).total.quantile(0.5))
