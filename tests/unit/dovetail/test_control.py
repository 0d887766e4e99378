"""The slow hand as values: windows in, plans out, on a virtual clock."""

from dataclasses import replace

import pytest
from tests.tiny_bundle import TinyBundle, write_tiny_bundle

from dovetail.api import HybridDeployment, parse_manifest
from dovetail.control import KEPT_MOVES, State, Terms, start, step, terms
from dovetail.decide import Policy, observe
from dovetail.errors import ManifestError, UnknownRung
from dovetail.ladder import Conditions, Ladder, Parts, RungCost
from dovetail.measure import Link, Sample, Window


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("control") / "bundle")


def _manifest(**spec: object) -> HybridDeployment:
    document = {
        "apiVersion": "dovetail.dev/v1alpha1",
        "kind": "HybridDeployment",
        "metadata": {"name": "tiny"},
        "spec": {"model": {"uri": "file:tiny.onnx"}, **spec},
    }
    return parse_manifest(document, "test")


def _terms(tiny: TinyBundle, **spec: object) -> Terms:
    deployment = _manifest(**spec)
    return terms(
        deployment,
        deployment.spec.edge.classes[0],
        bundle=tiny.bundle.digest,
        config=tiny.bundle.config,
        costs=tiny.costs,
    )


def _window(on: Terms, rung: str, at: Conditions, *, count: int = 5, link: bool = True) -> Window:
    """What devices see when every request behaves exactly as the ladder predicts under `at`."""
    parts = on.ladder.get(rung).predict(at)
    window = Window()
    for _ in range(count):
        window.add(Sample(rung, parts, parts.total, "ok"))
    if link:
        window.add_link(Link(at.rtt, 1 / at.bandwidth))
    return window


def _run(on: Terms, state: State, at: Conditions, *, begin: float, windows: int) -> State:
    for index in range(windows):
        window = _window(on, state.plan.default, at)
        state, _ = step(on, state, window, begin + 2.0 * index)
    return state


def test_a_collapsing_link_moves_the_cut_and_its_return_moves_it_back(tiny: TinyBundle) -> None:
    """The default rung follows the best rung of each link, and each move says why."""
    on = _terms(tiny, adapt={"cooldown": "4s"})
    good, bad = Conditions(edge=20.0), Conditions(edge=20.0, bandwidth=1e3, rtt=0.3)

    state = _run(on, start(on, 1), good, begin=0.0, windows=6)
    over_good = state.plan.default
    state = _run(on, state, bad, begin=100.0, windows=6)
    over_bad = state.plan.default
    state = _run(on, state, good, begin=200.0, windows=6)

    assert over_good == state.plan.default == on.ladder.best(good).id
    assert over_bad == on.ladder.best(bad).id == "edge"
    assert [(m.source, m.target) for m in state.moves] == [
        ("edge", over_good),
        (over_good, "edge"),
        ("edge", over_good),
    ]
    assert all("ms" in m.message and m.reason == "Faster" for m in state.moves)


def test_a_window_in_which_the_link_collapsed_does_not_defend_the_rung_in_use(
    tiny: TinyBundle,
) -> None:
    """Verify that what was measured before the collapse, and came with it, delays no move.

    Once the link is steady, a measurement is believed over the model again.
    """
    on = _terms(tiny, adapt={"cooldown": "4s"})
    good, bad = Conditions(edge=20.0), Conditions(edge=20.0, bandwidth=1e3, rtt=0.3)
    state = _run(on, start(on, 1), good, begin=0.0, windows=6)
    crossing = state.plan.default
    mixed = _window(on, crossing, good, count=20, link=False)
    mixed.add_link(Link(bad.rtt, 1 / bad.bandwidth))

    moved, _ = step(on, state, mixed, now=100.0)
    again, _ = step(on, replace(state, conditions=moved.conditions), mixed, now=102.0)

    assert crossing != "edge"
    assert moved.plan.default == "edge"
    assert again.plan.default == crossing


def test_generations_rise_only_when_there_is_something_to_say(tiny: TinyBundle) -> None:
    """A steady system publishes nothing; every edge would fetch it."""
    on = _terms(tiny)
    at = Conditions(edge=5.0)
    state = _run(on, start(on, 7), at, begin=0.0, windows=8)
    settled = state.plan

    state = _run(on, state, at, begin=100.0, windows=20)

    assert settled.generation > 7
    assert state.plan is settled


def test_a_plan_carries_costs_as_the_devices_were_seen_to_take(tiny: TinyBundle) -> None:
    """With a device 8 times slower, heads and encoding in the plan take 8 times as long."""
    on = _terms(tiny)

    state, _ = step(on, start(on, 1), _window(on, "edge", Conditions(edge=8.0)), now=0.0)

    for rung in state.plan.rungs:
        profiled = on.ladder.get(rung.id)
        assert rung.head == pytest.approx(8 * profiled.head)
        assert rung.encode == pytest.approx(8 * profiled.encode)
        assert rung.tail == profiled.tail


def test_prior_speeds_are_kept_while_nothing_is_measured(tiny: TinyBundle) -> None:
    """An empty window forgets neither the device's speed nor the rung."""
    on = _terms(tiny)
    state = _run(on, start(on, 1), Conditions(edge=8.0, bandwidth=1e3), begin=0.0, windows=3)

    after, decision = step(on, state, Window(), now=1000.0)

    assert after.conditions.edge == pytest.approx(8.0, rel=0.05)
    assert not decision.moved
    assert decision.reason == "LinkUnknown"
    assert after.plan is state.plan


def test_a_link_seen_lately_stands_in_until_it_is_stale(tiny: TinyBundle) -> None:
    """A window without a link keeps the last one for five seconds, not longer."""
    on = _terms(tiny)
    at = Conditions(edge=20.0)
    state, _ = step(on, start(on, 1), _window(on, "edge", at), now=0.0)
    blind = _window(on, state.plan.default, at, link=False)

    _, soon = step(on, state, blind, now=4.0)
    _, late = step(on, state, blind, now=6.0)

    assert soon.reason != "LinkUnknown"
    assert late.reason == "LinkUnknown"


@pytest.mark.parametrize(
    ("spec", "kept"),
    [
        pytest.param({"adapt": {"mode": "Manual"}, "split": {"rung": "cut2"}}, "cut2", id="manual"),
        pytest.param({"adapt": {"mode": "Paused"}}, "edge", id="paused"),
    ],
)
def test_a_rung_that_a_person_keeps_never_moves(
    tiny: TinyBundle, spec: dict[str, object], kept: str
) -> None:
    """Manual holds the pinned rung, Paused the one in use, and the edge is told to keep it."""
    on = _terms(tiny, **spec)

    state = _run(on, start(on, 1), Conditions(edge=50.0), begin=0.0, windows=5)

    assert state.plan.default == kept
    assert state.plan.pinned
    assert state.moves == ()


@pytest.mark.parametrize(
    ("spec", "lost"),
    [
        pytest.param(
            {"privacy": "Private"},
            {"cloud", "cloud-uint8", "cut1", "cut1-int8", "cut2", "cut2-int8-zstd"},
            id="private-lets-nothing-cross",
        ),
        pytest.param(
            {"privacy": "Masked"}, {"cloud", "cloud-uint8"}, id="masked-sends-no-raw-input"
        ),
        pytest.param(
            {"wire": {"codecs": ["int8"]}},
            {"cloud", "cloud-uint8", "cut1", "cut2", "cut2-int8-zstd"},
            id="codecs",
        ),
    ],
)
def test_only_rungs_within_the_terms_are_in_the_plan(
    tiny: TinyBundle, spec: dict[str, object], lost: set[str]
) -> None:
    """Privacy and codecs each take rungs off the ladder; `edge` always stays."""
    plan = start(_terms(tiny, **spec), 1).plan

    assert set(plan.allowed) == {rung.id for rung in tiny.bundle.config.rungs} - lost


def test_a_rung_beyond_quality_is_not_in_the_plan(tiny: TinyBundle) -> None:
    """Scores are held to agreement, everything else to error."""
    config = tiny.bundle.config
    changed = {"cut1-int8": {"top1": 0.9}, "cut2": {"top1": None, "max_error": 0.2}}
    rungs = tuple(rung.model_copy(update=changed.get(rung.id, {})) for rung in config.rungs)
    deployment = _manifest()

    on = terms(
        deployment,
        deployment.spec.edge.classes[0],
        bundle=tiny.bundle.digest,
        config=config.model_copy(update={"rungs": rungs}),
        costs=tiny.costs,
    )

    assert {rung.id for rung in rungs} - set(on.ladder.ids()) == set(changed)


def test_terms_that_leave_no_rung_are_refused(tiny: TinyBundle) -> None:
    """A ladder without an edge rung and nothing that may cross cannot be served."""
    crossing = [rung for rung in tiny.bundle.config.rungs if rung.id != "edge"]
    deployment = _manifest(privacy="Private")

    with pytest.raises(ManifestError, match="leave no rung"):
        terms(
            deployment,
            deployment.spec.edge.classes[0],
            bundle=tiny.bundle.digest,
            config=tiny.bundle.config.model_copy(update={"rungs": tuple(crossing)}),
            costs=tiny.costs,
        )


def test_a_pinned_rung_must_be_allowed(tiny: TinyBundle) -> None:
    """Pinning what privacy forbids is an error, not a leak."""
    spec = {"adapt": {"mode": "Manual"}, "split": {"rung": "cloud"}, "privacy": "Masked"}

    with pytest.raises(UnknownRung, match="'cloud'"):
        _terms(tiny, **spec)


def test_only_the_last_moves_are_remembered(tiny: TinyBundle) -> None:
    """A status stays small however long a deployment lives."""
    on = _terms(tiny, adapt={"cooldown": "0s"})
    state = start(on, 1)
    for turn in range(2 * KEPT_MOVES):
        at = Conditions(edge=20.0) if turn % 2 else Conditions(edge=20.0, bandwidth=1e3, rtt=0.3)
        state = _run(on, state, at, begin=10.0 * turn, windows=3)

    assert len(state.moves) == KEPT_MOVES
    assert [move.at for move in state.moves] == sorted(move.at for move in state.moves)


def test_corrected_costs_predict_what_profiled_costs_and_speeds_do(tiny: TinyBundle) -> None:
    """A plan's costs under neutral conditions equal profiled costs under the seen ones."""
    on, at = _terms(tiny), Conditions(edge=8.0, cloud=0.5)
    plan = on.plan(1, "edge", at)

    for rung in Ladder(rungs=plan.ladder):
        want = on.ladder.get(rung.id).predict(at).total
        assert rung.predict(Conditions()).total == pytest.approx(want)


def test_one_window_on_a_busy_machine_changes_no_speed(tiny: TinyBundle) -> None:
    """A single outlier publishes nothing; a change that stays is taken over."""
    on = _terms(tiny, adapt={"mode": "Manual"}, split={"rung": "edge"})
    state = _run(on, start(on, 1), Conditions(edge=5.0), begin=0.0, windows=8)
    settled = state.plan

    once = _run(on, state, Conditions(edge=50.0), begin=100.0, windows=1)
    again = _run(on, once, Conditions(edge=5.0), begin=102.0, windows=3)
    stays = _run(on, state, Conditions(edge=50.0), begin=100.0, windows=3)

    assert again.plan.ladder == settled.ladder
    assert stays.conditions.edge == pytest.approx(50.0, rel=0.05)


def test_a_piece_of_a_few_percent_says_nothing_of_the_whole_device() -> None:
    """What every request costs besides would look like a device twice as slow."""
    costs = {"encode": 0.0, "decode": 0.0, "bytes_down": 0, "bytes_up": 1000.0, "codec": "int4"}
    ladder = Ladder(
        rungs=(
            RungCost(id="cut1", cut=1, head=0.001, tail=0.029, **costs),
            RungCost(id="cut2", cut=2, head=0.010, tail=0.020, **costs),
            RungCost(id="edge", cut=3, head=0.030, tail=0.0, **costs),
        )
    )
    prior = Conditions(edge=5.0)

    def speed(rung: str, head: float) -> float:
        parts = Parts(head=head, tail=ladder.get(rung).tail)
        window = Window()
        window.add(Sample(rung, parts, parts.total, "ok"))
        return observe(ladder, window, None, Policy(), prior).conditions.edge

    assert speed("cut1", 0.010) == 5.0
    assert speed("cut2", 0.060) == pytest.approx(6.0, rel=0.05)
