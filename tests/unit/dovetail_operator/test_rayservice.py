"""How much fits into a pool: the one string that holds all its tails."""

import pytest

from dovetail.ladder import RungCost
from dovetail.placement import Cloud
from dovetail.plan import Plan
from dovetail_operator.config import Config
from dovetail_operator.rayservice import Member, ray_service, too_large

DIGEST = "sha256:" + "1" * 64
CONFIG = Config.model_validate(
    {
        "release": "r",
        "namespace": "system",
        "images": {"edge": "e", "partitioner": "p", "serving": "s"},
        "registry": {"url": "http://registry:5000"},
        "rayVersion": "2.60.0",
    }
)


def member(index):
    """A deployment with a class of four rungs."""
    ladder = tuple(
        RungCost(
            id=name,
            cut=0,
            codec="raw",
            head=1,
            encode=1,
            decode=1,
            tail=1,
            bytes_up=1,
            bytes_down=1,
        )
        for name in ("cloud", "cut1", "cut2", "edge")
    )
    plan = Plan(
        generation=1,
        deployment=f"default/m{index}",
        bundle=DIGEST,
        device_class="camera",
        default="edge",
        ladder=ladder,
    )
    tokens = {"camera": "0" * 64}
    return Member(f"default/m{index}", Cloud(), (DIGEST,), {"camera": plan}, tokens)


@pytest.mark.parametrize(("count", "fits"), [(100, True), (2000, False)])
def test_a_pool_that_cannot_be_stored_is_known_before_it_is_written(count, fits):
    """Verify that a usual pool fits, and that one beyond the bound is told with what to do."""
    members = [member(index) for index in range(count)]
    pool = ray_service(
        "p", "n", {}, members=members, pool=CONFIG.pools[0], config=CONFIG, operator_token=""
    )

    why = too_large(pool)

    assert (why is None) == fits
    assert fits or "spec.cloud.pool" in why
