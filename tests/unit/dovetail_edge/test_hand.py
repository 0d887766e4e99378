"""The fast hand, on a clock and a link of the test's own."""

import pytest
from tests.tiny_bundle import TinyBundle, write_tiny_bundle

from dovetail.ladder import Parts
from dovetail.measure import Sample
from dovetail.plan import Plan
from dovetail_edge.engine import Engine
from dovetail_edge.hand import FRESH, POLICY, Hand
from dovetail_edge.route import Routes, needs, routes


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle")


@pytest.fixture(scope="module")
def engine(tiny: TinyBundle) -> Engine:
    cuts, whole = needs(tiny.plan())
    return Engine(tiny.bundle, cuts, whole=whole)


def hand_of(tiny: TinyBundle, engine: Engine, plan: Plan | None = None) -> Hand:
    """A hand that has seen its device take 50 times the profiled seconds."""
    hand = Hand(routes(plan or tiny.plan("cut1-int8"), tiny.bundle, engine), 0.0)
    parts = Parts(head=0.05, encode=1e-4, network=0.002, queue=0.0, decode=1e-4, tail=0.002)
    for _ in range(5):
        hand.observe(Sample("cut1-int8", parts, 0.055, "ok"), 1, 0.0)
    return hand


def on(tiny: TinyBundle, engine: Engine, plan: Plan) -> Routes:
    return routes(plan, tiny.bundle, engine)


def feel(hand: Hand, *, rtt: float, rate: float, now: float, size: int = 700) -> None:
    """Let `size` bytes cross a link of that round trip and bytes per second."""
    for step in range(5):
        hand.tripped(rtt, now + step * 1e-3)
        hand.crossed(size, rtt + size / rate, now + step * 1e-3)


def test_a_link_that_collapses_moves_the_rung_to_the_edge_and_back(
    tiny: TinyBundle, engine: Engine
) -> None:
    """Both ways, each with its reason."""
    hand = hand_of(tiny, engine)
    feel(hand, rtt=0.002, rate=10e6, now=0.0)
    first = hand.look(0.1)
    assert first is not None
    assert first.target == "cloud-uint8"
    feel(hand, rtt=0.5, rate=2e3, now=10.0)
    second = hand.look(10.1)
    assert second is not None
    assert (second.source, second.target, hand.rung) == ("cloud-uint8", "edge", "edge")
    assert second.reason == "Faster"
    feel(hand, rtt=0.002, rate=10e6, now=45.0)
    back = hand.look(45.1)
    assert back is not None
    assert back.target == "cloud-uint8"


def test_a_stale_link_estimate_moves_nothing(tiny: TinyBundle, engine: Engine) -> None:
    """What the link was is no reason to move now."""
    hand = hand_of(tiny, engine)
    feel(hand, rtt=0.5, rate=2e3, now=0.0)
    assert hand.look(FRESH + 1) is None
    assert hand.rung == "cut1-int8"
    assert hand.link(FRESH + 1) is None


def test_no_two_moves_within_the_cooldown(tiny: TinyBundle, engine: Engine) -> None:
    """A link that swings does not make the rung swing."""
    hand = hand_of(tiny, engine)
    feel(hand, rtt=0.5, rate=2e3, now=0.0)
    assert hand.look(0.1) is not None
    feel(hand, rtt=0.001, rate=50e6, now=0.2)
    feel(hand, rtt=0.001, rate=50e6, now=1.4)
    feel(hand, rtt=0.001, rate=50e6, now=2.4)
    assert hand.look(0.1 + POLICY.cooldown * 0.9) is None


def test_a_pinned_plan_is_never_left_and_never_probed(tiny: TinyBundle, engine: Engine) -> None:
    """`adapt.mode: Manual` means the edge keeps the default."""
    hand = hand_of(tiny, engine, tiny.plan("cut1-int8", pinned=True))
    feel(hand, rtt=0.5, rate=2e3, now=0.0)
    assert hand.look(0.1) is None
    assert {hand.probe(None, 1) for _ in range(300)} == {None}


def test_one_request_in_a_hundred_probes_another_rung(tiny: TinyBundle, engine: Engine) -> None:
    """Probes take turns among the other rungs and never use the one at hand."""
    hand = hand_of(tiny, engine, tiny.plan("cut1-int8"))
    found = [hand.probe(60.0, 1) for _ in range(1000)]
    probed = [route.rung.id for route in found if route is not None]
    assert len(probed) == 10
    assert set(probed) == set(tiny.plan().allowed) - {"cut1-int8"}


def test_nothing_is_probed_where_the_device_cannot_answer_in_its_place(
    tiny: TinyBundle, engine: Engine
) -> None:
    """With `Fail` a probe could cost an answer; with no rung in time it would cost the deadline."""
    hand = hand_of(tiny, engine, tiny.plan("cut1-int8", fallback="Fail"))
    assert {hand.probe(60.0, 1) for _ in range(300)} == {None}
    hand = hand_of(tiny, engine, tiny.plan("cut1-int8"))
    assert {hand.probe(1e-6, 1) for _ in range(300)} == {None}


def test_a_new_default_is_taken_and_the_same_default_keeps_the_hand_s_choice(
    tiny: TinyBundle, engine: Engine
) -> None:
    """A plan that only corrects costs must not undo what the fast hand chose."""
    hand = hand_of(tiny, engine)
    feel(hand, rtt=0.5, rate=2e3, now=0.0)
    hand.look(0.1)
    assert hand.rung == "edge"
    corrected = tiny.plan("cut1-int8", generation=2)
    assert hand.adopt(on(tiny, engine, corrected), 1.0) is None
    assert hand.rung == "edge"
    other = tiny.plan("cut2", generation=3)
    shift = hand.adopt(on(tiny, engine, other), 2.0 + FRESH)
    assert shift is not None
    assert (shift.reason, hand.rung) == ("Plan", "cut2")
    assert hand.route is not None
    assert hand.route.plan.generation == 3


def test_a_default_chosen_before_a_collapse_is_weighed_by_what_is_seen_now(
    tiny: TinyBundle, engine: Engine
) -> None:
    """A late plan does not send requests back into a link this device knows to be bad."""
    hand = hand_of(tiny, engine)
    feel(hand, rtt=0.5, rate=2e3, now=0.0)
    hand.look(0.1)
    late = tiny.plan("cut2", generation=2)

    assert hand.adopt(on(tiny, engine, late), 1.0) is None

    assert hand.rung == "edge"
    assert hand.routes.plan.generation == 2


def test_a_plan_without_the_rung_in_use_starts_from_its_default(
    tiny: TinyBundle, engine: Engine
) -> None:
    """A rung that is no longer allowed is left at once."""
    hand = hand_of(tiny, engine)
    feel(hand, rtt=0.5, rate=2e3, now=0.0)
    hand.look(0.1)
    plan = tiny.plan("cut1-int8", generation=2)
    without = tuple(rung for rung in plan.ladder if rung.id != "edge")
    hand.adopt(on(tiny, engine, plan.model_copy(update={"ladder": without})), 1.0)
    assert hand.rung == "cut1-int8"


def test_a_batch_of_eight_does_not_look_like_a_device_eight_times_slower(
    tiny: TinyBundle, engine: Engine
) -> None:
    """Costs are per row; a batch is divided before it is compared with them."""
    hand = Hand(on(tiny, engine, tiny.plan("cut1-int8")), 0.0)
    parts = Parts(head=0.008, encode=1e-4, network=0.01, queue=0.0, decode=1e-4, tail=0.016)
    for _ in range(5):
        hand.observe(Sample("cut1-int8", parts, 0.034, "ok"), 8, 1.0)
    feel(hand, rtt=0.004, rate=1e6, now=1.0)
    hand.look(1.1)
    rung = tiny.plan().rungs.get("cut1-int8")
    assert hand.expected(rung, 1).head == pytest.approx(0.001, rel=0.1)
    assert hand.expected(rung, 8).tail == pytest.approx(0.016, rel=0.1)


def test_a_device_s_speed_is_not_forgotten_while_the_cloud_does_all_the_work(
    tiny: TinyBundle, engine: Engine
) -> None:
    """On `cloud` no segment runs here; the device must not look as fast as the profile again."""
    hand = hand_of(tiny, engine)
    feel(hand, rtt=0.002, rate=10e6, now=0.0)
    assert hand.look(0.1) is not None
    parts = Parts(encode=1e-4, network=0.002, decode=1e-4, tail=0.003)
    for now in range(10, 40, 3):
        for _ in range(5):
            hand.observe(Sample("cloud-uint8", parts, 0.006, "ok"), 1, float(now))
        feel(hand, rtt=0.002, rate=10e6, now=float(now))
        assert hand.look(now + 0.1) is None
    assert hand.rung == "cloud-uint8"


def test_one_cold_request_moves_nothing(tiny: TinyBundle, engine: Engine) -> None:
    """The first crossing meets a cold tail and a cold connection; it says little of the link."""
    hand = hand_of(tiny, engine)
    hand.crossed(700, 1.0, 0.0)
    assert hand.link(0.1) is None
    assert hand.look(0.1) is None


def test_a_crossing_says_whether_its_bytes_were_felt_and_the_first_is_not_believed(
    tiny: TinyBundle, engine: Engine
) -> None:
    """A probe grows by that; what the first one met cold never enters the estimate."""
    hand = hand_of(tiny, engine)
    hand.tripped(0.010, 0.0)

    assert not hand.crossed(1 << 20, 60.0, 0.0)
    assert not hand.crossed(1 << 10, 0.0101, 0.1)
    assert hand.crossed(1 << 20, 0.110, 0.2)

    link = hand.link(0.3)
    assert link is not None
    assert link.seconds_per_byte == pytest.approx(0.1 / (1 << 20), rel=0.1)


@pytest.mark.parametrize(
    ("privacy", "default", "start"),
    [
        ("Open", "cloud", "cloud"),
        ("Masked", "cut1", "cut1"),
        ("Masked", "cloud", "edge"),
        ("Private", "cut1", "edge"),
    ],
)
def test_privacy_takes_away_every_route_that_would_send_too_much(
    tiny: TinyBundle, engine: Engine, privacy: str, default: str, start: str
) -> None:
    """Whatever the plan's default says, no route exists for what may not leave."""
    found = on(tiny, engine, tiny.plan(default, privacy=privacy))
    assert found.start is not None
    assert found.start.rung.id == start
    crossing = {name for route in found.by_rung.values() for name in route.crossing}
    if privacy != "Open":
        assert "x" not in crossing
    if privacy == "Private":
        assert not crossing
