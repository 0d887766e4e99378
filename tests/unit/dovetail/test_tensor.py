"""Declarations, and bytes that become arrays."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dovetail.errors import InvalidTensor
from dovetail.tensor import FROM_OIP, OIP_TYPE, ONNX_TYPE, TensorSpec, check_inputs, from_bytes

X = TensorSpec(name="x", dtype="float32", shape=("N", 3))


def test_every_dtype_is_known_in_all_three_vocabularies():
    """Verify that numpy, ONNX and wire names map one to one."""
    assert ONNX_TYPE.keys() == OIP_TYPE.keys() == set(FROM_OIP.values())
    assert all(np.dtype(name).name == name for name in ONNX_TYPE)


@pytest.mark.parametrize("dtype", ["object", "O", "str", "complex64", "datetime64[s]", "bfloat16"])
def test_a_dtype_that_cannot_travel_cannot_be_declared(dtype):
    """Verify that a document with such a dtype is refused."""
    with pytest.raises(ValidationError, match="is not one of"):
        TensorSpec(name="x", dtype=dtype, shape=(1,))


def test_bytes_are_those_of_one_row_or_of_a_batch():
    """Verify the size arithmetic."""
    assert X.nbytes == 12
    assert X.dims_bytes(5) == 60
    assert TensorSpec(name="s", dtype="int64", shape=()).nbytes == 8


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 3), np.float64),
        np.zeros((2, 3), ">f4"),
        np.zeros((2, 4), np.float32),
        np.zeros((3,), np.float32),
        np.zeros((0, 3), np.float32),
        np.zeros((), np.float32),
    ],
    ids=["dtype", "byte order", "size", "rank", "empty", "scalar"],
)
def test_an_array_that_does_not_fit_is_named(array):
    """Verify that the error names the tensor and what was expected."""
    with pytest.raises(InvalidTensor, match=r"'x'.*expects"):
        X.check(array)


def test_inputs_agree_on_a_batch_wherever_its_axis_is():
    """Verify the batch of inputs whose symbolic axis differs."""
    state = TensorSpec(name="h", dtype="float32", shape=(2, "N", 4))
    feed = {"x": np.zeros((5, 3), np.float32), "h": np.zeros((2, 5, 4), np.float32)}

    assert check_inputs((X, state), feed) == 5
    with pytest.raises(InvalidTensor, match="disagree on dimension 'N'"):
        check_inputs((X, state), {**feed, "h": np.zeros((2, 4, 4), np.float32)})


def test_missing_and_unknown_inputs_are_named():
    """Verify the messages for names."""
    with pytest.raises(InvalidTensor, match="'x' is missing"):
        check_inputs((X,), {})
    with pytest.raises(InvalidTensor, match="unknown input 'y'"):
        check_inputs((X,), {"x": np.zeros((1, 3), np.float32), "y": np.zeros(1)})


@given(st.sampled_from(sorted(ONNX_TYPE)), st.lists(st.integers(0, 4), max_size=4), st.data())
def test_bytes_become_the_array_they_came_from(dtype, shape, data):
    """Verify the round trip for every dtype and shape, at any alignment."""
    size = int(np.prod(shape, dtype=int))
    values = np.array(data.draw(st.lists(st.integers(0, 1), min_size=size, max_size=size)), dtype)
    offset = data.draw(st.integers(0, 9))
    body = b"\xff" * offset + values.tobytes()

    array = from_bytes("x", memoryview(body)[offset:], dtype, shape)

    assert array.dtype == np.dtype(dtype)
    assert array.flags.aligned
    np.testing.assert_array_equal(array, values.reshape(shape))


def test_aligned_bytes_are_not_copied():
    """Verify that a large tensor is used where it lies."""
    body = bytearray(64)

    assert np.shares_memory(from_bytes("x", body, "float32", (16,)), np.frombuffer(body, "u1"))


@pytest.mark.parametrize(
    ("data", "dtype", "shape"),
    [
        (b"\0" * 7, "float32", (2,)),
        (b"", "float32", (0, 2**40, 2**40)),
        (b"\2", "bool", (1,)),
        (b"\0" * 8, "float32", (2**40, 2**40)),
    ],
    ids=["too short", "empty but vast", "not a bool", "vast"],
)
def test_bytes_that_are_not_the_tensor_are_refused(data, dtype, shape):
    """Verify that what numpy would refuse in its own way, or believe, is a typed error."""
    with pytest.raises(InvalidTensor):
        from_bytes("x", data, dtype, shape)
