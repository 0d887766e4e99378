"""The queue of keys."""

import threading
import time

from dovetail_operator.workqueue import FIRST, LONGEST, WorkQueue


def test_a_key_that_waits_is_given_out_once():
    """Verify that several additions of a waiting key are one piece of work."""
    queue = WorkQueue("t")
    for _ in range(3):
        queue.add("a")
    queue.add("b")

    assert [queue.take(), queue.take()] == ["a", "b"]
    queue.close()
    assert queue.take() is None


def test_a_key_that_changes_while_it_is_worked_on_is_worked_on_again_afterwards():
    """Verify that a key is never with two workers and that no change is lost."""
    queue = WorkQueue("t")
    queue.add("a")
    assert queue.take() == "a"
    queue.add("a")
    queue.add("a")
    queue.add("b")

    assert queue.take() == "b"
    queue.done("a")
    assert queue.take() == "a"


def test_the_wait_doubles_with_each_failure_up_to_a_bound_and_is_forgotten_on_success():
    """Verify exponential backoff with jitter by key."""
    queue = WorkQueue("t")
    waits = [queue.retry("a") for _ in range(20)]

    for count, wait in enumerate(waits):
        expected = min(FIRST * 2**count, LONGEST)
        assert 0.8 * expected <= wait <= 1.2 * expected
    assert queue.failures("a") == 20
    queue.forget("a")
    assert queue.retry("a") <= 1.2 * FIRST


def test_many_failures_at_once_share_a_bucket():
    """Verify that retries of many keys are spread out once the burst is used up."""
    queue = WorkQueue("t")
    waits = [queue.retry(f"k{index}") for index in range(1000)]

    assert max(waits[:50]) <= 1.2 * FIRST
    assert min(waits[-50:]) > 10 * FIRST


def test_a_delayed_key_comes_by_itself_and_the_earlier_time_stands():
    """Verify delayed additions: the first of two times counts, and once."""
    queue = WorkQueue("t")
    queue.add_after("a", 60.0)
    queue.add_after("a", 0.05)
    queue.add_after("a", 30.0)

    assert queue.take() == "a"
    queue.done("a")
    queue.add("b")
    assert queue.take() == "b"


def test_closing_wakes_every_worker():
    """Verify that no worker waits for ever at the end."""
    queue = WorkQueue("t")
    taken = []
    workers = [threading.Thread(target=lambda: taken.append(queue.take())) for _ in range(3)]
    for worker in workers:
        worker.start()
    time.sleep(0.05)
    queue.close()
    for worker in workers:
        worker.join(10)

    assert taken == [None, None, None]
