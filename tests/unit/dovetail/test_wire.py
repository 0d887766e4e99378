"""Open Inference Protocol messages."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dovetail.errors import InvalidMessage, InvalidTensor, Overloaded, RequestError
from dovetail.tensor import ONNX_TYPE
from dovetail.wire import (
    HEADER_LENGTH,
    InferRequest,
    InferResponse,
    WireTensor,
    build_request,
    build_response,
    error_body,
    format_timing,
    parse_request,
    parse_response,
    parse_timing,
)

ARRAYS = st.sampled_from(sorted(ONNX_TYPE)).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, max_side=4))
)
NAMES = st.text(min_size=1, max_size=8)


@given(st.dictionaries(NAMES, ARRAYS, max_size=4), NAMES)
def test_a_request_comes_out_as_it_went_in(feed, request_id):
    """Verify names, dtypes, shapes, bits and parameters over the binary form."""
    sent = InferRequest(
        tuple(WireTensor.of(name, array, codec="raw") for name, array in feed.items()),
        id=request_id,
        outputs={"y": False, "z": True},
        parameters={"generation": 3},
    )
    body, headers = build_request(sent)

    got = parse_request(body, headers.get(HEADER_LENGTH))

    assert (got.id, dict(got.outputs), got.binary) == (request_id, {"y": False, "z": True}, True)
    assert got.parameters["generation"] == 3
    assert [tensor.parameters for tensor in got.inputs] == [{"codec": "raw"}] * len(feed)
    arrays = got.arrays()
    assert list(arrays) == list(feed)
    for name, array in feed.items():
        assert (arrays[name].dtype, arrays[name].shape) == (array.dtype, array.shape)
        assert arrays[name].tobytes() == array.tobytes()


@given(
    st.sampled_from(["float16", "float32", "float64", "int8", "int64", "uint64", "bool"]).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(max_dims=3, max_side=3))
    )
)
def test_json_answers_carry_the_same_values_as_binary_ones(array):
    """Verify that an answer asked for as JSON reads back bit for bit, NaN and infinity included."""
    answer = InferResponse("m", "v", (WireTensor.of("y", array),))

    body, headers = build_response(answer, InferRequest((), outputs={"y": False}))

    assert HEADER_LENGTH not in headers
    np.testing.assert_array_equal(parse_response(body, None).arrays()["y"], array)


def test_an_answer_holds_the_outputs_that_were_asked_for():
    """Verify choice by name, JSON beside binary."""
    answer = InferResponse(
        "m", "v", tuple(WireTensor.of(n, np.arange(3, dtype=np.int32)) for n in "abc"), id="7"
    )

    body, headers = build_response(answer, InferRequest((), outputs={"c": True, "a": False}))
    got = parse_response(body, headers[HEADER_LENGTH])

    assert (got.model, got.version, got.id) == ("m", "v", "7")
    assert list(got.arrays()) == ["a", "c"]
    assert json.loads(body[: int(headers[HEADER_LENGTH])])["outputs"][0]["data"] == [0, 1, 2]


def test_the_first_tensor_of_a_message_can_be_used_in_place():
    """Verify that a parsed float tensor shares the body's memory."""
    body, headers = build_request(InferRequest((WireTensor.of("x", np.ones(8, np.float64)),)))

    array = parse_request(body, headers[HEADER_LENGTH]).arrays()["x"]

    assert np.shares_memory(array, np.frombuffer(body, np.uint8))


def test_a_tensor_of_the_other_byte_order_is_sent_little_endian():
    """Verify that values survive, not bytes."""
    tensor = WireTensor.of("x", np.array([1.5, -2.0], ">f4"))

    np.testing.assert_array_equal(tensor.array(), np.array([1.5, -2.0], "<f4"))


def test_a_transposed_tensor_is_sent_in_its_own_order():
    """Verify that memory layout does not leak into the message."""
    array = np.arange(6, dtype=np.int64).reshape(2, 3).T

    np.testing.assert_array_equal(WireTensor.of("x", array).array(), array)


@given(st.binary(max_size=300), st.one_of(st.none(), st.text(max_size=6), st.integers(0, 300)))
def test_arbitrary_bytes_are_refused_and_nothing_else(body, length):
    """Verify that parsing raises request errors only."""
    try:
        parse_request(body, None if length is None else str(length)).arrays()
    except RequestError:
        return


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
DATATYPES = st.sampled_from(["FP16", "FP32", "INT8", "INT64", "UINT8", "UINT64", "BOOL", "BYTES"])
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "name": NAMES | JSON,
        "shape": st.lists(st.integers(-1, 3) | st.integers(), max_size=4) | JSON,
        "datatype": DATATYPES | JSON,
        "data": st.lists(st.integers(-2, 300) | st.floats() | st.booleans(), max_size=4) | JSON,
        "parameters": st.fixed_dictionaries(
            {}, optional={"binary_data_size": st.integers(-1, 40) | JSON, "shape": JSON}
        )
        | JSON,
    },
)


@given(
    st.fixed_dictionaries(
        {"inputs": st.lists(ENTRIES, max_size=3) | JSON},
        optional={"id": JSON, "outputs": JSON, "parameters": JSON},
    ),
    st.binary(max_size=40),
    st.booleans(),
)
def test_almost_a_request_is_refused_and_nothing_else(head, rest, binary):
    """Verify that well-formed JSON with any values raises request errors only."""
    text = json.dumps(head).encode()
    try:
        request = parse_request(text + rest, str(len(text)) if binary else None)
        for tensor in request.inputs:
            assert tensor.array().nbytes == len(tensor.data)
        request.arrays()
    except RequestError:
        return


@pytest.mark.parametrize(
    ("body", "length"),
    [
        (b"[" * 200_000, None),
        (b'{"inputs":[]}', "1" * 5000),
        (b'{"inputs":[]}', "-1"),
        (b'{"inputs":[]}', "14"),
        (b'{"inputs":[]}', "\u0661\u0662"),
        (b'{"inputs":[],"n":' + b"9" * 5000 + b"}", None),
        (b'{"inputs":[]}trailing', "13"),
        (b"{}", None),
        (b"null", None),
        (b'{"inputs":{}}', None),
        (b'{"inputs":[3]}', None),
        (b'{"inputs":[{"shape":[1]}]}', None),
        (b'\xff{"inputs":[]}', None),
        (b" " * (5 << 20), str(5 << 20)),
    ],
    ids=range(14),
)
def test_a_body_that_is_no_message_is_refused(body, length):
    """Verify deep nesting, endless digits, wrong lengths and wrong types."""
    with pytest.raises(InvalidMessage):
        parse_request(body, length)


def one(data: object, datatype: str, shape: object = None) -> bytes:
    size = len(data) if isinstance(data, list) else 1
    entry = {"name": "x", "datatype": datatype, "shape": shape or [size], "data": data}
    return json.dumps({"inputs": [entry]}).encode()


@pytest.mark.parametrize(
    ("data", "datatype"),
    [
        ([1.5], "INT32"),
        ([300], "UINT8"),
        ([-1], "UINT64"),
        (["1"], "FP32"),
        ("12", "FP32"),
        ([None], "FP32"),
        ([math.nan], "INT8"),
        ([2], "BOOL"),
        ([10**400], "FP32"),
        ([[1], [2, 3]], "FP32"),
        ({"a": 1}, "FP32"),
        ([1], "BYTES"),
        ([1], "fp32"),
    ],
)
def test_json_data_that_is_not_of_its_datatype_is_refused(data, datatype):
    """Verify that nothing is cut, wrapped or read as a number that is none."""
    with pytest.raises(InvalidTensor, match="'x'"):
        parse_request(one(data, datatype), None)


def test_json_integers_may_be_spelt_as_floats_and_rows_may_nest():
    """Verify what clients of other languages send."""
    got = parse_request(one([[1.0, 2], [3, 4]], "INT64", [2, 2]), None).arrays()["x"]

    np.testing.assert_array_equal(got, np.array([[1, 2], [3, 4]]))
    assert got.dtype == np.int64


@pytest.mark.parametrize("shape", [[True], [-1], [2**63], [1] * 40, "1", [1.0], [2]])
def test_a_shape_that_is_none_is_refused(shape):
    """Verify that shapes are bounded lists of sizes that fit the data."""
    with pytest.raises(InvalidTensor):
        parse_request(one([1], "FP32", shape), None)


def test_an_input_given_twice_is_refused():
    """Verify that no input silently wins."""
    tensor = WireTensor.of("x", np.zeros(1, np.float32))
    body, headers = build_request(InferRequest((tensor, tensor)))

    with pytest.raises(InvalidTensor, match="twice"):
        parse_request(body, headers[HEADER_LENGTH]).arrays()


def test_a_tensor_cannot_claim_bytes_beyond_the_body():
    """Verify that binary sizes are bounded by what arrived."""
    entry = {
        "name": "x",
        "shape": [4],
        "datatype": "UINT8",
        "parameters": {"binary_data_size": 5},
    }
    text = json.dumps({"inputs": [entry]}).encode()

    with pytest.raises(InvalidTensor, match="4 bytes left"):
        parse_request(text + b"1234", str(len(text)))


@given(st.dictionaries(st.sampled_from(["recv", "queue", "tail"]), st.floats(0, 1e3), min_size=1))
def test_timings_read_back_to_the_microsecond(seconds):
    """Verify Server-Timing both ways."""
    got = parse_timing(format_timing(seconds))

    assert got.keys() == seconds.keys()
    assert all(abs(got[name] - seconds[name]) <= 1e-6 for name in seconds)


@pytest.mark.parametrize(
    "value", ["", "a;dur=nan", "a;dur=inf", "a;dur=-1", "a;dur=x", "a", ";;,="]
)
def test_timings_that_are_no_durations_are_left_out(value):
    """Verify that a peer's nonsense never enters an average."""
    assert parse_timing(value) == {}


@given(st.text(max_size=50))
def test_any_timing_header_is_read_without_an_error(value):
    """Verify that only durations come out of arbitrary text."""
    assert all(0 <= seconds < math.inf for seconds in parse_timing(value).values())


def test_an_error_answer_names_its_class_and_when_to_retry():
    """Verify the body and the headers."""
    body, headers = error_body(Overloaded("full"))

    assert json.loads(body) == {"error": "full"}
    assert headers["Dovetail-Error"] == "Overloaded"
    assert headers["Retry-After"] == "1"
