"""The breaker, on a clock of the test's own."""

from dovetail_edge.breaker import Breaker, State


def test_a_failure_opens_it_and_requests_stop_waiting() -> None:
    """One failed request, retry included, is enough: the next one is not sent."""
    breaker = Breaker()
    assert breaker.allows()
    breaker.failure(0.0)
    breaker.release()
    assert not breaker.allows()
    assert breaker.is_open


def test_being_late_once_is_forgiven_and_twice_in_a_row_is_not() -> None:
    """A success in between starts the count again."""
    breaker = Breaker()
    breaker.late(0.0)
    breaker.success()
    breaker.late(1.0)
    assert breaker.state is State.CLOSED
    breaker.late(2.0)
    assert breaker.state is State.OPEN


def test_a_good_probe_lets_exactly_one_request_through() -> None:
    """The trial decides; everyone else is still answered on the edge."""
    breaker = Breaker()
    breaker.failure(0.0)
    assert not breaker.probe_due(0.1)
    assert breaker.probe_due(0.3)
    breaker.probed(0.3, good=True)
    assert breaker.allows()
    assert not breaker.allows()
    breaker.success()
    assert breaker.allows()
    assert breaker.allows()


def test_a_trial_that_proves_nothing_passes_the_turn_on() -> None:
    """A trial that ends before it asked the tail anything must not block the next."""
    breaker = Breaker()
    breaker.failure(0.0)
    breaker.probed(0.3, good=True)
    assert breaker.allows()
    breaker.release()
    assert breaker.allows()


def test_a_tail_that_answers_probes_but_hangs_on_requests_is_asked_ever_more_rarely() -> None:
    """Every failed trial doubles the pause, up to a bound, and a success resets it."""
    breaker, now, pauses = Breaker(), 0.0, []
    breaker.failure(now)
    for _ in range(8):
        begin = now
        while not breaker.probe_due(now):
            now += 0.0625  # adds up exactly
        pauses.append(now - begin)
        breaker.probed(now, good=True)
        assert breaker.allows()
        breaker.late(now)
        breaker.release()
    assert pauses == sorted(pauses)
    assert pauses[0] < pauses[3] < pauses[-1] == pauses[-2]
    breaker.probed(now + 10, good=True)
    breaker.success()
    breaker.failure(now + 20)
    assert breaker.probe_due(now + 20 + pauses[0])


def test_a_straggler_s_success_does_not_close_what_later_failures_opened() -> None:
    """A request sent before the outage may still be answered; that says nothing about now."""
    breaker = Breaker()
    assert breaker.allows()
    breaker.failure(1.0)
    breaker.success()
    assert breaker.is_open
    assert breaker.opened == 1
