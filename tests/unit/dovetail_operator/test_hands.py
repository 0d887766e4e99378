"""Slow hands that go on: what an operator that starts makes of the plan it finds."""

import pytest
from tests.tiny_bundle import write_tiny_bundle

from dovetail.api import parse_manifest
from dovetail.control import terms
from dovetail.errors import UnknownRung
from dovetail.ladder import Conditions
from dovetail_operator.hands import Hands, resume
from dovetail_operator.record import Record, partition_hash

NOW = 1_800_000_000.0


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


def deployment(**spec):
    return parse_manifest(
        {
            "apiVersion": "dovetail.dev/v1alpha1",
            "kind": "HybridDeployment",
            "metadata": {"name": "page"},
            "spec": {
                "model": {"uri": "https://models.example/page.onnx"},
                "quality": {"minTop1Agreement": 0, "maxError": 9},
                **spec,
            },
        },
        "test",
    )


def terms_of(tiny, **spec):
    made = deployment(**spec)
    return terms(
        made,
        made.spec.edge.classes[0],
        bundle=tiny.bundle.digest,
        config=tiny.bundle.config,
        costs=tiny.costs,
    )


def test_a_plan_that_still_holds_is_gone_on_with_as_it_is(tiny):
    """Verify that a restart publishes no new generation."""
    own = terms_of(tiny)
    plan = own.plan(7, "cut1-int8", Conditions(edge=3.0))

    assert resume(own, plan, NOW).plan == plan


def test_a_deployment_made_again_stands_above_its_earlier_life(tiny):
    """Verify that devices take a new life's first plan, and a restored one's next spec."""
    own = terms_of(tiny)
    first = resume(own, None, NOW).plan
    last = own.plan(first.generation + 3600, "cut1-int8", Conditions())

    again = resume(own, None, NOW + 3601).plan
    restored = resume(terms_of(tiny, privacy="Private"), first, NOW + 3601).plan

    assert again.generation > last.generation
    assert restored.generation > last.generation


def test_how_fast_device_and_cloud_are_is_known_again_from_the_plan(tiny):
    """Verify that a device that leans on the cloud is not thought fast after a restart."""
    own = terms_of(tiny)
    plan = own.plan(7, "cut1-int8", Conditions(edge=30.0, cloud=1.5))

    known = resume(own, plan, NOW).conditions
    assert (known.edge, known.cloud) == (pytest.approx(30.0), pytest.approx(1.5))


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param({"adapt": {"mode": "Manual"}, "split": {"rung": "cut2"}}, id="a pinned rung"),
        pytest.param({"privacy": "Private"}, id="a privacy class that forbids its rung"),
    ],
)
def test_how_fast_a_device_is_outlives_a_spec_that_takes_it_off_its_rung(tiny, spec):
    """Verify that a plan from another rung has the device's own costs, and the next one too."""
    plan = terms_of(tiny).plan(7, "cut1-int8", Conditions(edge=30.0))

    between = resume(terms_of(tiny, **spec), plan, NOW)
    after = resume(terms_of(tiny), between.plan, NOW)

    assert between.plan.default != plan.default
    assert between.conditions.edge == after.conditions.edge == pytest.approx(30.0)
    assert after.plan.rungs.get("edge").head == pytest.approx(plan.rungs.get("edge").head)


@pytest.mark.parametrize(
    ("spec", "default"),
    [
        pytest.param({"objective": {"deadline": "1s"}}, "cut1-int8", id="a deadline"),
        pytest.param({"adapt": {"mode": "Paused"}}, "cut1-int8", id="a pause"),
        pytest.param({"privacy": "Private"}, "edge", id="a privacy class that forbids its rung"),
        pytest.param(
            {"adapt": {"mode": "Manual"}, "split": {"rung": "cut2"}}, "cut2", id="a pinned rung"
        ),
    ],
)
def test_another_spec_is_the_next_generation_and_keeps_the_rung_where_it_may(tiny, spec, default):
    """Verify that what differs gets a higher generation, and which rung it starts from."""
    plan = terms_of(tiny).plan(7, "cut1-int8", Conditions())

    state = resume(terms_of(tiny, **spec), plan, NOW)

    assert state.plan.generation > plan.generation
    assert state.plan.default == default


def test_a_record_survives_its_config_map(tiny):
    """Verify that what is written can be read again, and prices the same ladder."""
    made = deployment()
    record = Record.of(partition_hash(made), tiny.bundle.digest, tiny.bundle.config, tiny.costs)
    hand = Hands().ensure(made, 1, record)["default"]
    owner = {
        "apiVersion": "v1",
        "kind": "X",
        "metadata": {"name": "page", "namespace": "default", "uid": "u"},
    }
    item = record.config_map(owner, {"default": hand.state.plan})

    read = Record.read(item)

    assert read.plan("default") == hand.state.plan
    assert Hands().ensure(made, 1, read)["default"].terms == terms_of(tiny)


def test_a_hand_never_goes_back_behind_what_it_decided(tiny):
    """Verify that a spec that comes back raises the generation instead of using an old one."""
    hands, free = Hands(), deployment()
    pinned = deployment(adapt={"mode": "Manual"}, split={"rung": "cut2"})
    record = Record.of("p", tiny.bundle.digest, tiny.bundle.config, tiny.costs)

    seen = [
        hands.ensure(one, generation, record)["default"].state.plan.generation
        for generation, one in enumerate((free, pinned, free, free), 1)
    ]

    assert seen[0] < seen[1] < seen[2] == seen[3]


def test_a_pinned_rung_that_is_not_there_changes_nothing(tiny):
    """Verify that a bad spec raises and leaves the hands as they were."""
    hands, record = Hands(), Record.of("p", tiny.bundle.digest, tiny.bundle.config, tiny.costs)
    before = hands.ensure(deployment(), 1, record)

    with pytest.raises(UnknownRung, match="cut9"):
        hands.ensure(deployment(adapt={"mode": "Manual"}, split={"rung": "cut9"}), 2, record)

    assert hands.get("default/page") == before
