"""The sandbox: limits, typed errors, and an answer that cannot run code."""

import pickle
from pathlib import Path

import pytest
from tests.unit.dovetail_partitioner import guests

from dovetail.errors import ModelError, ModelLimitExceeded, UnboundShape
from dovetail_partitioner import sandbox
from dovetail_partitioner.graph import TensorInfo
from dovetail_partitioner.sandbox import Limits

ROOT = Path(__file__).parents[3]
LIMITS = Limits(memory=2 << 30, cpu=20, wall=20.0)


@pytest.fixture(autouse=True)
def _guests_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the child find this folder's functions."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def test_a_result_comes_back() -> None:
    """Verify arguments and result across the process boundary."""
    value, _ = sandbox.run(guests.describe, "x", limits=LIMITS)

    assert value == TensorInfo("x", "float32", (1,), 4)


def test_a_typed_error_comes_back_as_itself() -> None:
    """Verify class and message."""
    with pytest.raises(UnboundShape, match="axis 3"):
        sandbox.run(guests.refuse, limits=LIMITS)


def test_memory_is_limited() -> None:
    """Verify that asking for more than the limit is an error, not the machine's end."""
    with pytest.raises(ModelLimitExceeded, match=r"2\.0 GiB"):
        sandbox.run(guests.allocate, 4 << 30, limits=LIMITS)


def test_processor_time_is_limited() -> None:
    """Verify that a spinning child is stopped by its own limit."""
    with pytest.raises(ModelLimitExceeded, match="1 s of processor time"):
        sandbox.run(guests.spin, limits=Limits(memory=2 << 30, cpu=1, wall=60.0))


def test_a_crash_is_a_model_error() -> None:
    """Verify that a child killed by a memory fault does not take its parent along."""
    with pytest.raises(ModelError, match=r"crashed its sandbox \(exit -11\)"):
        sandbox.run(guests.crash, limits=LIMITS)


def test_there_is_no_network_where_the_kernel_permits_it() -> None:
    """Verify that a child that says it is offline cannot reach even loopback."""
    reached, offline = sandbox.run(guests.reach_loopback, limits=LIMITS)

    assert reached is not offline


class _Malice:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("owned",))


def test_an_answer_that_names_other_code_is_refused() -> None:
    """Verify the allow-list of what is unpickled."""
    with pytest.raises(ModelError, match=r"builtins\.print"):
        sandbox.unpickle(pickle.dumps(_Malice()))
