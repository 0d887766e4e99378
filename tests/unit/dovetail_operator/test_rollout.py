"""Which versions run beside one another: pure values and a clock that is given."""

import pytest

from dovetail_operator.rollout import RETRY, SETTLE, Reports, Stand

OLD, NEW, NEXT = (f"sha256:{digit * 64}" for digit in "abc")


def staged(at=100.0):
    return Stand().towards(OLD, NEW, 1, at)


def test_nothing_is_staged_while_the_live_version_is_the_one_asked_for():
    """Verify the stand of a deployment that rolls nothing out."""
    assert Stand().towards(OLD, OLD, 1, 5.0) == Stand()
    assert Stand().towards(OLD, None, 1, 5.0) == Stand()
    assert Stand().applications(OLD) == (OLD,)


def test_a_wanted_version_is_staged_behind_what_runs():
    """Verify that a pool without a place loses the newcomer first."""
    assert staged().applications(OLD) == (OLD, NEW)


def test_what_is_said_of_a_tail_just_asked_for_is_not_believed_at_once():
    """Verify that a state left over from an earlier application of the name switches nothing."""
    stand = staged(100.0)

    assert not stand.settled(NEW, 100.0 + SETTLE - 0.1)
    assert stand.settled(NEW, 100.0 + SETTLE)
    assert stand.look_again(600.0, 100.0) == SETTLE


def test_staging_the_same_again_does_not_begin_anew():
    """Verify that a reconcile in between changes nothing."""
    assert staged(100.0).towards(OLD, NEW, 1, 103.0) == staged(100.0)


def test_another_wish_replaces_a_staged_version_and_retains_nothing_of_it():
    """Verify that a version no device was ever told of leaves no trace."""
    stand = staged(100.0).towards(OLD, NEXT, 2, 130.0)

    assert stand.applications(OLD) == (OLD, NEXT)
    assert stand.asked_at == 130.0


def test_after_a_switch_the_old_runs_on_until_nobody_reports_it():
    """Verify retention, its end, and that silence of the ledger ends nothing."""
    stand = staged().switched(OLD, 200.0)
    assert stand.applications(NEW) == (NEW, OLD)

    assert stand.released(Reports(259.0), 60.0) == stand
    assert stand.released(Reports(280.0, {"a" * 12: 230.0}), 60.0) == stand
    assert stand.released(None, 0.0) == stand
    late = Reports(290.0, {"a" * 12: 230.0})
    assert stand.released(late, 60.0).applications(NEW) == (NEW,)


def test_a_ledger_that_was_restarted_lets_no_version_go_early():
    """Verify that what an earlier read told is kept beside what a later one does not know."""
    reports = Reports(280.0, {"a" * 12: 279.0}).joined({}, 285.0)

    assert staged().switched(OLD, 200.0).released(reports, 60.0).retained == {OLD: 200.0}


def test_going_back_to_a_retained_version_needs_no_wait_and_swaps_the_two():
    """Verify a rollback while the old still runs."""
    stand = staged().switched(OLD, 200.0).towards(NEW, OLD, 2, 201.0)

    assert stand.settled(OLD, 201.0)
    assert stand.applications(NEW) == (NEW, OLD)
    assert stand.switched(NEW, 202.0).applications(OLD) == (OLD, NEW)


@pytest.mark.parametrize(
    ("generation", "now", "tried"),
    [
        pytest.param(1, 150.0, False, id="neither time nor a change"),
        pytest.param(2, 150.0, True, id="a change of the spec"),
        pytest.param(1, 110.0 + RETRY, True, id="time"),
    ],
)
def test_a_refused_tail_leaves_the_pool_and_is_tried_again(generation, now, tried):
    """Verify what brings a refused tail back, and that it is waited for anew."""
    refused = staged().without(NEW, 1, "no room", 110.0)
    assert refused.applications(OLD) == (OLD,)
    assert refused.without(NEW, 1, "no room", 120.0) == refused

    stand = refused.towards(OLD, NEW, generation, now)

    assert stand.applications(OLD) == ((OLD, NEW) if tried else (OLD,))
    assert stand.settled(NEW, now) is (not tried)


def test_a_first_version_that_is_refused_makes_room_and_comes_back():
    """Verify that the live version itself leaves a pool that it keeps from coming into service."""
    refused = Stand().without(OLD, 1, "no room", 110.0)

    assert refused.applications(OLD) == ()
    assert refused.look_again(600.0, 110.0) == RETRY
    assert refused.towards(OLD, OLD, 2, 120.0).applications(OLD) == (OLD,)


def test_a_stand_survives_its_text():
    """Verify that an operator that starts goes on where another stopped."""
    stand = staged().switched(OLD, 200.0).without(NEXT, 3, "no room", 210.0)

    assert Stand.model_validate_json(stand.model_dump_json(by_alias=True)) == stand
