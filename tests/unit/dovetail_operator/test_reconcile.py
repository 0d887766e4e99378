"""What a reconcile does with what it sees, where no API server is needed to show it."""

import math

from kubernetes.client import ApiClient, Configuration
from tests.unit.dovetail_operator.test_desired import CONFIG, hybrid

from dovetail_operator.client import Api
from dovetail_operator.events import Events
from dovetail_operator.reconcile import Reconciler
from dovetail_operator.reporting import Reporter
from dovetail_operator.world import World


def test_what_happens_before_an_own_status_is_back_is_looked_at_again():
    """Verify that a change is not lost that comes between a status's write and its event.

    The event of a status brings no key back, so the reconcile must come back by itself.
    """
    api = Api(ApiClient(Configuration(host="http://127.0.0.1:9")))
    woken = []
    world = World(api, CONFIG, "", hybrid=woken.append, pool=lambda _: None)
    reporter = Reporter(api, Events(api, "t"))
    reconciler = Reconciler(
        api, world, None, hands=None, pools=None, mover=None, reporter=reporter, trust=None
    )
    seen = hybrid(model={"uri": "https://models.example/page.onnx"})
    seen["metadata"]["resourceVersion"] = "5"
    world.stores["HybridDeployment"].put(seen)
    reporter._written["default/page"] = (
        7,
        math.inf,
    )  # what was written is not in the store yet

    wait = reconciler.reconcile("default/page")

    assert wait is not None
    assert 0 < wait < 1
    back = {**seen, "status": {}, "metadata": {**seen["metadata"], "resourceVersion": "7"}}
    world._hybrid_changed(seen, back)
    assert woken == []
