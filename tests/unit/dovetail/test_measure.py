"""Samples, mergeable windows and the link estimator."""

import json
import math
from collections.abc import Sequence
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.errors import InvalidMessage
from dovetail.ladder import Parts
from dovetail.measure import Histogram, Link, LinkEstimator, Sample, Window

VALUES = st.lists(st.floats(1e-9, 1e5), min_size=1, max_size=60)


def histogram(values: Sequence[float]) -> Histogram:
    made = Histogram()
    for value in values:
        made.add(value)
    return made


@given(VALUES, st.floats(0, 1))
def test_a_quantile_is_within_two_percent(values, q):
    """Verify the sketch's promise against the sorted values."""
    exact = sorted(values)[math.floor(q * (len(values) - 1))]

    assert histogram(values).quantile(q) == pytest.approx(exact, rel=0.02 + 1e-9)


@given(VALUES, VALUES)
def test_merging_is_the_same_as_having_seen_both(left, right):
    """Verify that merge equals union, in either order."""
    merged, other = histogram(left), histogram(right)
    merged.merge(histogram(right))
    other.merge(histogram(left))

    whole = histogram([*left, *right])
    assert merged.buckets == other.buckets == whole.buckets
    assert merged.count == whole.count
    assert merged.sum == pytest.approx(whole.sum)
    assert merged.mean == pytest.approx(float(np.mean([*left, *right])))


def test_values_beyond_the_ends_count_at_the_ends():
    """Verify zero, negative and infinite values."""
    made = histogram([0.0, -1.0, math.inf])

    assert made.count == 3
    assert made.quantile(0) == pytest.approx(1e-12, rel=0.02)
    assert made.quantile(1) == pytest.approx(1e6, rel=0.02)


def test_an_empty_histogram_has_no_quantile():
    """Verify that nothing is not zero."""
    assert math.isnan(Histogram().quantile(0.5))
    assert math.isnan(Histogram().mean)


SAMPLES = st.builds(
    Sample,
    rung=st.sampled_from(["edge", "cut1-int8", "cloud"]),
    parts=st.builds(Parts, head=st.floats(0, 10), tail=st.floats(0, 10)),
    total=st.floats(0, 100),
    outcome=st.sampled_from(["ok", "degraded", "failed"]),
    bytes_up=st.integers(0, 10**9),
    probe=st.booleans(),
)


@given(st.lists(SAMPLES, max_size=20), st.lists(SAMPLES, max_size=20))
def test_windows_of_two_devices_merge_through_json_into_one(left, right):
    """Verify that the ledger's view equals that of one observer, samples shipped as JSON."""
    merged, whole = Window(), Window()
    for samples in (left, right):
        one = Window()
        for sample in samples:
            one.add(sample)
            whole.add(sample)
        one.add_link(Link(0.01, 1e-6))
        whole.add_link(Link(0.01, 1e-6))
        merged.merge(Window.load(json.loads(json.dumps(one.dump()))))

    assert merged.count == whole.count == len(left) + len(right)
    assert merged.rungs.keys() == whole.rungs.keys()
    for rung, window in whole.rungs.items():
        got = merged.rungs[rung]
        assert (got.outcomes, got.bytes_up, got.probes) == (
            window.outcomes,
            window.bytes_up,
            window.probes,
        )
        assert got.total.buckets == window.total.buckets
        assert {n: h.buckets for n, h in got.parts.items()} == {
            n: h.buckets for n, h in window.parts.items()
        }
    assert merged.link() == whole.link()


def test_times_of_failed_requests_do_not_blur_the_others():
    """Verify what each outcome adds to."""
    window = Window()
    for outcome, total in (("ok", 1.0), ("degraded", 3.0), ("failed", 100.0)):
        window.add(Sample("cut1", Parts(head=total), total, outcome))

    rung = window.rungs["cut1"]
    assert rung.outcomes == {"ok": 1, "degraded": 1, "failed": 1}
    assert rung.total.count == 2
    assert rung.mean_parts().head == pytest.approx(1.0)


def good() -> dict:
    window = Window()
    window.add(Sample("edge", Parts(head=1.0), 1.0, "ok"))
    return json.loads(json.dumps(window.dump()))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("rungs",), []),
        (("rungs",), None),
        (("rtt",), 3),
        (("rungs", "edge"), []),
        (("rungs", "edge", "outcomes"), {"fine": 1}),
        (("rungs", "edge", "outcomes", "ok"), -1),
        (("rungs", "edge", "outcomes", "ok"), 1.5),
        (("rungs", "edge", "bytesUp"), 10**30),
        (("rungs", "edge", "bytesUp"), True),
        (("rungs", "edge", "total", "count"), 2),
        (("rungs", "edge", "total", "sum"), math.nan),
        (("rungs", "edge", "total", "sum"), 1e9),
        (("rungs", "edge", "total", "sum"), -1.0),
        (("rungs", "edge", "total", "buckets"), {"1000000000": 1}),
        (("rungs", "edge", "total", "buckets"), {"x": 1}),
        (("rungs", "edge", "total", "buckets"), {"1": -1, "2": 2}),
        (("rungs", "edge", "total", "buckets"), [1]),
    ],
)
def test_a_window_that_contradicts_itself_is_refused(path, value):
    """Verify that no peer can poison a pool's figures or crash whoever reads them."""
    data = good()
    at = data
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value

    with pytest.raises(InvalidMessage):
        Window.load(data)


@given(st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_anything_else_is_no_window(data):
    """Verify that arbitrary JSON is a typed error."""
    with pytest.raises(InvalidMessage):
        Window.load(data)


class SimulatedLink:
    """Requests one after the other over a link with given speeds; time is virtual."""

    def __init__(self, size: int, *, rtt: float = 0.02, gap: float = 0.01) -> None:
        self.size, self.rtt, self.gap, self.now = size, rtt, gap, 0.0
        self.estimator = LinkEstimator()

    def run(self, until: float, bandwidth: float) -> Link:
        """Cross until then; returns the link as last estimated."""
        while self.now < until:
            self.estimator.observe_trip(self.rtt, self.now)
            seconds = self.rtt + self.size / bandwidth
            self.now += seconds
            self.estimator.observe(self.size, seconds, self.now)
            self.now += self.gap
        link = self.estimator.link(self.now)
        assert link is not None
        return link


@pytest.mark.parametrize("bandwidth", [0.05e6, 1.25e6, 12.5e6, 125e6])
@pytest.mark.parametrize("size", [16_000, 600_000])
def test_a_steady_link_is_found(bandwidth, size):
    """Verify bandwidth and round trip over three orders of magnitude."""
    link = SimulatedLink(size).run(15.0, bandwidth)

    assert link.rtt == pytest.approx(0.02, rel=0.01)
    assert 1 / link.seconds_per_byte == pytest.approx(bandwidth, rel=0.05)


@pytest.mark.parametrize("gap", [0.0, 0.05, 0.4])
@pytest.mark.parametrize("size", [1_000, 16_000, 100_000])
def test_a_collapse_is_seen_within_two_seconds(size, gap):
    """Verify that the link of after a 20-fold collapse is reported 2 s later, and back again."""
    simulated = SimulatedLink(size, gap=gap)
    simulated.run(10.0, 2.5e6)

    slow = simulated.run(simulated.now + 2.0, 0.125e6)
    fast = simulated.run(simulated.now + 2.5, 2.5e6)

    assert 1 / slow.seconds_per_byte == pytest.approx(0.125e6, rel=0.1)
    assert 1 / fast.seconds_per_byte == pytest.approx(2.5e6, rel=0.1)


def test_one_stalled_request_is_not_a_collapse():
    """Verify that an outlier among regular crossings changes nothing."""
    simulated = SimulatedLink(16_000, gap=0.1)
    before = simulated.run(10.0, 2.5e6)
    simulated.now += 0.4
    simulated.estimator.observe(16_000, 0.4, simulated.now)

    assert simulated.estimator.link(simulated.now) == before


def test_many_tiny_crossings_do_not_drown_the_probes_that_tell():
    """Verify that the rate comes from rare larger bodies while requests of 300 bytes flow."""
    estimator, random = LinkEstimator(), Random(3)
    for tick in range(600):
        now = tick / 30
        if tick % 60 == 0:
            estimator.observe_trip(0.02, now)
            estimator.observe(8_000, 0.02 + 8_000 / 0.25e6, now)
        estimator.observe(300, 0.02 + 300 / 0.25e6 + random.uniform(0, 0.004), now)

    link = estimator.link(20.0)

    assert link is not None
    assert 1 / link.seconds_per_byte == pytest.approx(0.25e6, rel=0.1)
    assert estimator.felt_age(20.0) == pytest.approx(2.0)


def test_a_round_trip_that_grew_is_followed():
    """Verify that the fast crossings of long ago do not hold the round trip down."""
    simulated = SimulatedLink(16_000)
    simulated.run(10.0, 2.5e6)
    simulated.rtt = 0.3

    link = simulated.run(20.0, 2.5e6)

    assert link.rtt == pytest.approx(0.3, rel=0.01)
    assert 1 / link.seconds_per_byte == pytest.approx(2.5e6, rel=0.05)


def test_a_lucky_crossing_promises_no_more_than_round_trips_vary():
    """Verify that a crossing as quick as an empty trip is not taken for an endless bandwidth."""
    estimator = LinkEstimator()
    for second, trip in enumerate((0.020, 0.028, 0.018, 0.024, 0.030)):
        estimator.observe_trip(trip, float(second))
    estimator.observe(2_000, 0.019, 5.0)

    link = estimator.link(5.0)

    assert link is not None
    assert 1 / link.seconds_per_byte < 2_000 / 0.002


def test_a_link_not_seen_within_the_horizon_is_unknown():
    """Verify that an estimate expires."""
    estimator = LinkEstimator(horizon=30.0)
    assert estimator.link(0.0) is None
    assert estimator.age(5.0) == math.inf

    estimator.observe(1000, 0.1, 10.0)

    assert estimator.link(40.0) is not None
    assert estimator.link(40.1) is None
    assert estimator.age(40.0) == 30.0


@given(
    st.lists(
        st.tuples(st.integers(0, 10**7), st.floats(0, 10), st.floats(0, 5)), min_size=1, max_size=80
    )
)
def test_any_history_gives_a_usable_link(history):
    """Verify that estimates are finite and positive whatever was observed."""
    estimator, now = LinkEstimator(), 0.0
    for size, seconds, gap in history:
        now += gap
        estimator.observe(size, seconds, now)
        estimator.observe_trip(seconds / 2, now)

    link = estimator.link(now)

    assert link is not None
    assert 0 <= link.rtt < math.inf
    assert 0 < link.seconds_per_byte < math.inf
