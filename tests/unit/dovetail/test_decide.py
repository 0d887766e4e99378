"""The one decision both hands make."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.decide import Measured, Policy, Reason, View, decide, estimate, observe
from dovetail.errors import UnknownRung
from dovetail.ladder import Conditions, Ladder, Parts, RungCost
from dovetail.measure import Link, Sample, Window

IDS = ("cloud", "cut1", "cut1-int8", "cut2", "edge")
SECONDS = st.floats(0, 10)


def rung(name: str, head: float, tail: float, size: float = 0.0) -> RungCost:
    return RungCost(
        id=name,
        cut=IDS.index(name),
        codec="raw",
        head=head,
        encode=0,
        decode=0,
        tail=tail,
        bytes_up=size,
        bytes_down=0,
    )


@st.composite
def ladders(draw) -> Ladder:
    names = draw(st.lists(st.sampled_from(IDS), min_size=1, unique=True))
    return Ladder(
        rungs=tuple(
            rung(name, draw(SECONDS), draw(SECONDS), draw(st.floats(0, 1e7)))
            for name in sorted(names, key=IDS.index)
        )
    )


PARTS = st.builds(Parts, head=SECONDS, network=SECONDS, queue=SECONDS, tail=SECONDS)
VIEWS = st.builds(
    View,
    conditions=st.builds(
        Conditions,
        edge=st.floats(0, 50),
        cloud=st.floats(0, 50),
        bandwidth=st.floats(1e3, 1e9),
        rtt=st.floats(0, 1),
        queue=st.floats(0, 1),
    ),
    link_known=st.booleans(),
    measured=st.dictionaries(
        st.sampled_from(IDS), st.builds(Measured, st.integers(1, 9), SECONDS, PARTS)
    ),
)
POLICIES = st.builds(Policy, hysteresis=st.floats(0, 0.9), cooldown=st.floats(0, 60))


@given(ladders(), VIEWS, st.sampled_from(IDS), POLICIES, st.floats(0, 100))
def test_a_decision_is_allowed_repeatable_and_honest(ladder, view, current, policy, since):
    """Verify, whatever is known: an allowed rung, the same one each time, true regret and flag."""
    decision = decide(ladder, view, current, policy, now=since, moved_at=0.0)

    assert decision == decide(ladder, view, current, policy, now=since, moved_at=0.0)
    assert decision.rung in ladder.ids()
    assert decision.moved == (decision.rung != current)
    assert [e.rung for e in decision.estimates] == list(ladder.ids())
    seconds = {e.rung: e.seconds for e in decision.estimates}
    best = min(seconds.values())
    assert decision.regret >= 0
    if best > 0:
        assert decision.regret == pytest.approx(seconds[decision.rung] / best - 1)


@given(ladders(), VIEWS, st.sampled_from(IDS), POLICIES, st.floats(0, 100))
def test_a_move_is_worth_it_and_not_too_soon(ladder, view, current, policy, since):
    """Verify hysteresis and cooldown for every voluntary move."""
    decision = decide(ladder, view, current, policy, now=since, moved_at=0.0)
    if current not in ladder.ids():
        assert decision.reason is Reason.NOT_ALLOWED
        return

    seconds = {e.rung: e.seconds for e in decision.estimates}
    gain = 1 - min(seconds.values()) / seconds[current] if seconds[current] > 0 else 0.0
    if decision.moved:
        assert decision.reason is Reason.FASTER
        assert view.link_known
        assert seconds[decision.rung] == min(seconds.values())
        assert gain >= policy.hysteresis
        assert since >= policy.cooldown
    else:
        assert not (view.link_known and gain > policy.hysteresis and since >= policy.cooldown)


@given(ladders(), VIEWS, st.sampled_from(IDS), st.data())
def test_a_pinned_rung_is_kept_whatever_is_measured(ladder, view, current, data):
    """Verify manual mode."""
    pinned = data.draw(st.sampled_from(ladder.ids()))

    decision = decide(ladder, view, current, Policy(), now=0.0, moved_at=0.0, pinned=pinned)

    assert (decision.rung, decision.reason) == (pinned, Reason.PINNED)


LADDER = Ladder(rungs=(rung("cloud", 0, 1, 1e6), rung("cut1", 1, 0.5, 1e4), rung("edge", 3, 0)))


def test_a_pin_on_a_rung_that_is_gone_is_an_error():
    """Verify that a person's slip is named."""
    with pytest.raises(UnknownRung, match="cut2"):
        decide(LADDER, View(), "edge", Policy(), now=0, moved_at=0, pinned="cut2")


def test_without_a_link_it_stays_or_stands_alone():
    """Verify the choice where nothing is known of the link."""
    unknown = View(link_known=False)

    stay = decide(LADDER, unknown, "cut1", Policy(), now=99, moved_at=0)
    alone = decide(LADDER, unknown, "cut2", Policy(), now=99, moved_at=0)
    first = decide(LADDER.only(["cloud", "cut1"]), unknown, "cut2", Policy(), now=99, moved_at=0)

    assert (stay.rung, stay.reason) == ("cut1", Reason.NO_LINK)
    assert (alone.rung, alone.reason) == ("edge", Reason.NOT_ALLOWED)
    assert first.rung == "cloud"


@pytest.mark.parametrize(
    ("bandwidth", "best"), [(1e8, "cloud"), (1e5, "cut1"), (1e3, "edge")], ids=str
)
def test_the_cut_follows_the_link(bandwidth, best):
    """Verify that each link has its rung."""
    view = View(Conditions(bandwidth=bandwidth, rtt=0.0), link_known=True)
    start = "edge" if best != "edge" else "cloud"

    decision = decide(LADDER, view, start, Policy(), now=99, moved_at=0)

    assert (decision.rung, decision.reason) == (best, Reason.FASTER)
    assert best in decision.message


def test_a_measurement_is_believed_once_there_are_enough():
    """Verify model against measurement."""
    view = View(measured={"edge": Measured(2, 7.0, Parts()), "cut1": Measured(3, 7.0, Parts())})

    by_id = {e.rung: e for e in estimate(LADDER, view)}

    assert (by_id["edge"].seconds, by_id["edge"].measured) == (3.0, False)
    assert (by_id["cut1"].seconds, by_id["cut1"].measured) == (7.0, True)


def test_speeds_are_what_the_samples_say():
    """Verify that a six times slower device and a twice slower cloud are found from samples."""
    window = Window()
    for _ in range(10):
        parts = Parts(head=6.0, network=0.1, queue=0.25, tail=1.0)
        window.add(Sample("cut1", parts, parts.total, "ok"))
    prior = Conditions(edge=1, cloud=1, bandwidth=5e5, rtt=0.5)

    view = observe(LADDER, window, None, Policy(), prior)
    linked = observe(LADDER, window, Link(0.01, 1e-6), Policy(), prior)

    assert view.conditions.edge == pytest.approx(6.0)
    assert view.conditions.cloud == pytest.approx(2.0)
    assert view.conditions.queue == pytest.approx(0.25)
    assert (view.link_known, view.conditions.bandwidth, view.conditions.rtt) == (False, 5e5, 0.5)
    assert linked.link_known
    assert linked.conditions.bandwidth == pytest.approx(1e6)
    by_id = {e.rung: e.seconds for e in estimate(LADDER, linked)}
    assert by_id["edge"] == pytest.approx(18.0)


def test_what_failed_or_left_the_ladder_says_nothing():
    """Verify that only answers of allowed rungs are evidence."""
    window = Window()
    window.add(Sample("cut1", Parts(head=100.0), 100.0, "failed"))
    window.add(Sample("cut2", Parts(head=100.0), 100.0, "ok"))
    prior = Conditions(edge=2.0)

    view = observe(LADDER, window, None, Policy(), prior)

    assert view.measured == {}
    assert view.conditions == replace(prior)


def test_a_device_that_was_left_alone_still_says_how_fast_it_is():
    """Verify that an outage is a measurement of `edge`, and of nothing else."""
    ladder = Ladder(rungs=(rung("cut1", 0.02, 0.03, 1e5), rung("edge", 0.05, 0)))
    window = Window()
    for _ in range(4):
        window.add(Sample("cut1", Parts(head=0.1), 0.9, "degraded", bytes_up=100_000))
        window.add(Sample("edge", Parts(head=0.25), 0.26, "degraded"))

    view = observe(ladder, window, None, Policy(), Conditions())

    assert view.measured.keys() == {"edge"}
    assert view.conditions.edge == pytest.approx(5, rel=0.03)


def test_equals_are_no_reason_to_move():
    """Verify that it stays among equals, at zero seconds too."""
    free = Ladder(rungs=(rung("cut1", 0, 0), rung("edge", 0, 0)))
    view = View(Conditions(rtt=0.0, bandwidth=math.inf), link_known=True)

    for current in free.ids():
        assert not decide(free, view, current, Policy(hysteresis=0.0), now=99, moved_at=0).moved
