"""Which plans a tail hands out after a `user_config` arrived."""

from typing import Any

import pytest
from tests.tiny_bundle import TinyBundle, write_tiny_bundle

from dovetail.plan import Plan
from dovetail_serving.tail import adopt

NAME = "default/tiny"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


def config(*plans: Plan) -> dict[str, Any]:
    return {"plans": {p.device_class: p.model_dump(mode="json", by_alias=True) for p in plans}}


def test_a_higher_generation_replaces_and_a_lower_one_is_ignored(tiny: TinyBundle):
    """Plans may arrive late, twice or out of order."""
    first, second = tiny.plan(generation=1), tiny.plan("cut2", generation=2)

    held = adopt({}, config(first), NAME)
    held = adopt(held, config(second), NAME)
    held = adopt(held, config(first), NAME)

    assert held == {"camera": second}


def test_a_class_that_is_no_longer_named_loses_its_plan(tiny: TinyBundle):
    """`user_config` says everything there is."""
    held = adopt({}, config(tiny.plan(), tiny.plan(device_class="robot")), NAME)

    assert set(adopt(held, config(tiny.plan()), NAME)) == {"camera"}


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"plans": 7},
        {"plans": {"camera": {"generation": 9}}},
        {"plans": {"camera": "no"}},
    ],
)
def test_a_plan_that_does_not_hold_leaves_the_current_one(tiny: TinyBundle, bad: dict[str, Any]):
    """Raising here would make Serve kill the replica."""
    held = {"camera": tiny.plan()}

    assert adopt(held, bad, NAME) == held


def test_a_plan_of_another_deployment_or_class_is_ignored(tiny: TinyBundle):
    """A mixed-up config must not send devices to another model."""
    held = {"camera": tiny.plan()}
    other = config(tiny.plan(generation=5, deployment="default/other"))
    swapped = {"plans": {"camera": config(tiny.plan(generation=5, device_class="x"))["plans"]["x"]}}

    assert adopt(held, other, NAME) == held
    assert adopt(held, swapped, NAME) == held
