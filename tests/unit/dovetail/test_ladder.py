"""Prices of rungs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.tiny_bundle import TinyBundle, write_tiny_bundle

from dovetail.errors import BundleError, UnknownRung
from dovetail.ladder import CodecCost, Conditions, CostProfile, Ladder, RungCost, sweep


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> TinyBundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny", side=8, width=4)


SECONDS = st.floats(0, 10)
RUNGS = st.builds(
    RungCost,
    id=st.sampled_from(["cloud", "cut1", "cut1-int8"]),
    cut=st.just(1),
    codec=st.just("raw"),
    head=SECONDS,
    encode=SECONDS,
    decode=SECONDS,
    tail=SECONDS,
    bytesUp=st.floats(0, 1e9),
    bytesDown=st.integers(0, 10**9),
)
CONDITIONS = st.builds(
    Conditions,
    edge=st.floats(0.1, 50),
    cloud=st.floats(0.1, 50),
    bandwidth=st.floats(1e3, 1e10),
    rtt=st.floats(0, 1),
    queue=st.floats(0, 1),
)


@pytest.mark.parametrize(("weight_bytes", "uncut"), [(9_000_000, 6.5), (9_000_001, 7.0)])
def test_a_rung_costs_what_runs_on_each_side_of_its_cut(tiny, weight_bytes, uncut):
    """Verify segments where there is a cut, and the whole where a small model has none."""
    costs = tiny.costs.model_copy(update={"segments": (1.0, 2.0, 4.0), "whole": 6.5})
    model = tiny.bundle.config.model.model_copy(update={"weight_bytes": weight_bytes})

    ladder = Ladder.of(tiny.bundle.config.model_copy(update={"model": model}), costs)

    split = {rung.id: (rung.head, rung.tail) for rung in ladder}
    assert split["cloud"] == (0.0, uncut)
    assert split["cut1-int8"] == (1.0, 6.0)
    assert split["cut2"] == (3.0, 4.0)
    assert split["edge"] == (uncut, 0.0)
    assert ladder.ids() == tuple(rung.id for rung in tiny.bundle.config.rungs)
    for rung, spec in zip(ladder, tiny.bundle.config.rungs, strict=True):
        assert (rung.bytes_up, rung.bytes_down) == (spec.bytes_up, spec.bytes_down)


def test_a_profile_of_other_segments_is_refused(tiny):
    """Verify that times cannot be put on the wrong cuts."""
    costs = tiny.costs.model_copy(update={"segments": (1.0, 2.0)})

    with pytest.raises(BundleError, match="2 segments, the bundle has 3"):
        Ladder.of(tiny.bundle.config, costs)


@given(RUNGS, CONDITIONS)
def test_a_slower_link_or_device_never_makes_a_rung_cheaper(rung, at):
    """Verify that the price is monotone in everything it depends on."""
    price = rung.predict(at).total

    for worse in (
        Conditions(at.edge * 2, at.cloud, at.bandwidth, at.rtt, at.queue),
        Conditions(at.edge, at.cloud * 2, at.bandwidth, at.rtt, at.queue),
        Conditions(at.edge, at.cloud, at.bandwidth / 2, at.rtt, at.queue),
        Conditions(at.edge, at.cloud, at.bandwidth, at.rtt + 1, at.queue),
        Conditions(at.edge, at.cloud, at.bandwidth, at.rtt, at.queue + 1),
    ):
        assert rung.predict(worse).total >= price


@given(CONDITIONS)
def test_the_edge_rung_does_not_feel_the_link(at):
    """Verify that nothing of the cloud is in the price of staying."""
    edge = RungCost(
        id="edge",
        cut=3,
        codec="raw",
        head=2.0,
        encode=0,
        decode=0,
        tail=0,
        bytes_up=0,
        bytes_down=0,
    )

    assert edge.predict(at).total == 2.0 * at.edge


def test_the_best_rung_is_the_cheapest_under_every_condition_of_the_sweep(tiny):
    """Verify `best` against its definition, and that the sweep changes its answer."""
    ladder = Ladder.of(
        tiny.bundle.config, tiny.costs.model_copy(update={"segments": (0.001, 0.01, 0.03)})
    )
    chosen = set()

    for at in sweep():
        best = ladder.best(at)
        assert best.predict(at).total == min(rung.predict(at).total for rung in ladder)
        chosen.add(best.id)

    assert len(chosen) > 1


def test_a_ladder_is_narrowed_in_its_own_order(tiny):
    """Verify allowed rungs and the error for one that is not there."""
    ladder = Ladder.of(tiny.bundle.config, tiny.costs)

    assert ladder.only(["edge", "cloud"]).ids() == ("cloud", "edge")
    with pytest.raises(UnknownRung, match="cut9"):
        ladder.only(["edge", "cut9"])
    with pytest.raises(UnknownRung, match="cut9"):
        ladder.get("cut9")


@pytest.mark.parametrize("figure", ["NaN", "Infinity", "1e999", '"x"', "null"])
def test_a_figure_that_is_none_is_refused(figure):
    """Verify that no NaN reaches a comparison of rungs."""
    with pytest.raises(ValidationError):
        CodecCost.model_validate_json(f'{{"encode":{figure},"decode":0}}')


def test_a_profile_survives_json(tiny):
    """Verify the file format both ways, camelCase outside."""
    text = tiny.costs.model_dump_json(by_alias=True)

    assert CostProfile.model_validate_json(text) == tiny.costs
    assert '"format":"dovetail.dev/costs.v1"' in text
