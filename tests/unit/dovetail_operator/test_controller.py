"""Workers that rest: they take nothing meanwhile, and stopping does not wait for them."""

import threading

from dovetail_operator.controller import Controller
from dovetail_operator.workqueue import WorkQueue


def test_a_worker_that_rests_takes_nothing_and_ends_at_once():
    """Verify a rest of hours keeps a second key waiting, and that a stop ends the rest."""
    queue, seen, done = WorkQueue("rest"), [], threading.Event()

    def work(key):
        seen.append(key)
        done.set()

    controller = Controller("pool", work, lambda: None, workers=1, rest=lambda _: 9e3, queue=queue)
    queue.add("vision/first")
    controller.start()
    assert done.wait(30)
    queue.add("vision/second")
    controller.stop(3600)
    assert seen == ["vision/first"]
    assert "pool-0" not in {thread.name for thread in threading.enumerate()}
