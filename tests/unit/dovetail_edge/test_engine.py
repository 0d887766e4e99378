"""The device: what it loads, what it learns of itself, and how it is made slow."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from tests.tiny_bundle import TinyBundle, rows, write_tiny_bundle

from dovetail.errors import BundleError, ManifestError
from dovetail_edge.engine import Engine, Smoothed
from dovetail_edge.route import check, needs


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle")


def test_a_device_that_never_answers_alone_loads_the_head_only(tiny: TinyBundle) -> None:
    """With `Fail` and no `edge` rung nothing behind the deepest cut is loaded."""
    plan = tiny.plan("cut1", fallback="Fail")
    head_only = tuple(rung for rung in plan.ladder if rung.id in ("cloud", "cut1"))
    cuts, whole = needs(plan.model_copy(update={"ladder": head_only}))
    assert (cuts, whole) == ({0, 1}, False)
    engine = Engine(tiny.bundle, cuts, whole=whole)
    live, _ = engine.run(rows(1), 0, 1, 1)
    assert {"a", "brightness"} <= set(live)
    assert engine.head(1) > 0
    assert engine.head(3) == engine.head(1)


def test_a_device_that_only_sends_its_input_loads_nothing(tiny: TinyBundle) -> None:
    """Rung `cloud` alone needs no segment here."""
    engine = Engine(tiny.bundle, {0}, whole=False)
    feed = rows(1)
    live, seconds = engine.run(feed, 0, 0, 1)
    assert (live.keys(), seconds) == (feed.keys(), 0.0)


def test_any_way_of_running_the_segments_gives_the_whole_model_s_answer(tiny: TinyBundle) -> None:
    """In one go, or in two with the live tensors in between."""
    engine, feed = Engine(tiny.bundle, {0, 1, 2, 3}, whole=True), rows(2)
    for cut in (0, 1, 2, 3):
        live, _ = engine.run(feed, 0, cut, 2)
        done, _ = engine.run(live, cut, 3, 2)
        for name, want in tiny.whole(feed).items():
            np.testing.assert_allclose(done[name], want, rtol=1e-4, atol=1e-5)


def test_what_an_uncut_request_takes_is_learned_for_itself(tiny: TinyBundle) -> None:
    """Verify that segments tell nothing of the whole beside them, and the whole nothing of them."""
    engine = Engine(tiny.bundle, {0, 1, 3}, whole=True)
    rest, uncut = engine.remaining(1, 1), engine.remaining(0, 1)
    assert uncut[0] > 0
    assert rest[0] > 0

    live, _ = engine.run(rows(1), 0, 1, 1)
    engine.run(live, 1, 3, 1)
    assert engine.remaining(0, 1) == uncut
    assert engine.remaining(1, 1) != rest

    rest = engine.remaining(1, 1)
    engine.run(rows(1), 0, 3, 1)
    assert engine.remaining(0, 1) != uncut
    assert engine.remaining(1, 1) == rest
    assert engine.head(3) == engine.remaining(0, 1)[0]


def test_a_slowed_device_is_slower_and_knows_it(tiny: TinyBundle) -> None:
    """What is measured through the slowdown is what predictions are made from."""
    plain = Engine(tiny.bundle, {0, 3}, whole=True)
    slow = Engine(tiny.bundle, {0, 3}, whole=True, slowdown=200)
    assert slow.head(3) > plain.head(3)
    assert slow.remaining(0, 1)[0] > plain.remaining(0, 1)[0]


def test_many_threads_share_the_device_without_mixing_their_tensors(tiny: TinyBundle) -> None:
    """One at a time, each its own answer."""
    engine, wrong = Engine(tiny.bundle, {0, 1, 3}, whole=True), []

    def work(seed: int) -> None:
        feed = rows(1, seed=seed)
        done, _ = engine.run(feed, 0, 3, 1)
        if not np.allclose(done["scores"], tiny.whole(feed)["scores"], atol=1e-4):
            wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_smoothed_duration_follows_and_its_spread_shrinks() -> None:
    """A steady duration becomes certain; a change is followed."""
    smoothed = Smoothed()
    smoothed.add(1.0)
    for _ in range(40):
        smoothed.add(1.0)
    assert smoothed.mean == pytest.approx(1.0)
    assert smoothed.spread < 0.01
    for _ in range(40):
        smoothed.add(3.0)
    assert smoothed.mean == pytest.approx(3.0, rel=0.01)


@pytest.mark.parametrize("change", [{"device_class": "robot"}, {"deployment": "other/one"}])
def test_a_plan_of_another_class_or_deployment_is_refused(
    tiny: TinyBundle, change: dict[str, str]
) -> None:
    """An edge follows one deployment's plan for one class."""
    plan = tiny.plan("cut1")
    with pytest.raises(ManifestError):
        check(plan.model_copy(update=change), tiny.bundle, plan)


def test_a_plan_whose_rung_is_cut_elsewhere_is_refused(tiny: TinyBundle) -> None:
    """The same id at another cut would send other tensors than the tail expects."""
    plan = tiny.plan("cut1")
    moved = tuple(replace(rung, cut=2) if rung.id == "cut1" else rung for rung in plan.ladder)
    with pytest.raises(BundleError, match="cut1"):
        check(plan.model_copy(update={"ladder": moved}), tiny.bundle, plan)
