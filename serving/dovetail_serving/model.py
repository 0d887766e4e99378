"""Turns Open Inference Protocol requests into jobs, and outputs into answers.

Two kinds of call share one queue. A call of the model without a rung brings the model's own inputs
and gets all its outputs, so any Triton or KServe client works. A call of version
`<digest12>.<rung id>` brings the tensors that cross at that rung's cut, coded as the bundle says,
and gets the outputs made behind the cut. A version of another bundle is refused: a head never
meets a tail of another version.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dovetail.bundle import Bundle, RungSpec
from dovetail.codecs import CodecSet
from dovetail.errors import BodyTooLarge, InvalidTensor, UnknownModel, UnknownVersion
from dovetail.tensor import OIP_TYPE, Array, TensorSpec, check_inputs
from dovetail.wire import (
    InferRequest,
    InferResponse,
    WireTensor,
    build_response,
    parse_request,
)
from dovetail_serving.engine import Answer, Job

PLATFORM = "onnx_dovetail"


@dataclass(frozen=True, slots=True)
class Call:
    """What a path asks for: the rung, or None for the whole model, and the version to answer."""

    rung: RungSpec | None
    version: str


class Model:
    """One bundle's calls.

    Args:
        bundle: the bundle.
        max_bytes: most bytes the tensors of a request may take once decoded.
    """

    def __init__(self, bundle: Bundle, max_bytes: int) -> None:
        self._config, self._version, self._max_bytes = bundle.config, bundle.version, max_bytes
        self._codecs = CodecSet(bundle.config)
        crossing = [rung for rung in self._config.rungs if rung.cut < len(self._config.segments)]
        for rung in crossing:  # built now: no request waits for a table, and none builds it twice
            for name in self._config.crossing(rung.cut):
                self._codecs.of(self._codecs.effective(rung.codec, name), name)
        self._calls = {f"{self._version}.{rung.id}": rung for rung in crossing}

    @property
    def name(self) -> str:
        """The model's name."""
        return self._config.model.name

    def call(self, name: str, version: str | None) -> Call:
        """What a path names.

        Raises:
            UnknownModel: another model.
            UnknownVersion: another bundle, or a rung that no request crosses at.
        """
        if name != self._config.model.name:
            raise UnknownModel(
                f"model {name!r} is not served here; this tail serves {self._config.model.name!r}"
            )
        if version is None or version == self._version:
            return Call(None, self._version)
        if version not in self._calls:
            raise UnknownVersion(
                f"version {version!r} of {name!r} is not served here; served are "
                f"{[self._version, *self._calls]}; fetch the plan again"
            )
        return Call(self._calls[version], version)

    def job(self, call: Call, body: bytes, header_length: str | None) -> Job:
        """Parse a request's message; its tensors are decoded later, in a compute thread.

        Raises:
            InvalidMessage: not an inference message.
            InvalidTensor: a tensor is not as declared, or an unknown output is asked for.
            BodyTooLarge: the tensors would take more than the bound.
        """
        request = parse_request(body, header_length)
        rung = call.rung
        cut = rung.cut if rung else 0
        outputs = self._config.remote_outputs(cut)
        _check_outputs(request, outputs)
        key, rows = self._signature(request, cut, coded=rung is not None)

        def decode() -> Mapping[str, Array]:
            if rung is None:
                feed = request.arrays()
                check_inputs(self._config.inputs, feed)
                return feed
            return self._codecs.unpack(rung.codec, self._config.crossing(cut), request.inputs)

        def encode(found: Mapping[str, Array]) -> Answer:
            tensors = tuple(WireTensor.of(spec.name, found[spec.name]) for spec in outputs)
            answer = InferResponse(self.name, call.version, tensors, id=request.id)
            return build_response(answer, request)

        return Job(cut, key, rows, decode, encode)

    def metadata(self, call: Call) -> bytes:
        """The protocol's model metadata, as JSON."""
        cut = call.rung.cut if call.rung else 0
        inputs = [_describe(spec) for spec in self._config.inputs]
        if call.rung is not None:
            inputs = [
                {"name": name, "datatype": "UINT8", "shape": [-1]}
                for name in self._config.crossing(cut)
            ]
        return json.dumps(
            {
                "name": self.name,
                "versions": [self._version, *self._calls],
                "platform": PLATFORM,
                "inputs": inputs,
                "outputs": [_describe(spec) for spec in self._config.remote_outputs(cut)],
            }
        ).encode()

    def _signature(
        self, request: InferRequest, cut: int, *, coded: bool
    ) -> tuple[tuple[object, ...], int]:
        """What a request must share to be computed with another, and its rows."""
        known = {spec.name: spec for spec in self._config.inputs} if not coded else {}
        known |= {name: self._config.spec(name) for name in self._config.crossing(cut)}
        total, rows, shapes = 0, 1, []
        for tensor in request.inputs:
            spec = known.get(tensor.name)
            if spec is None:
                raise InvalidTensor(
                    f"unknown input {tensor.name!r}; the inputs are {sorted(known)}"
                )
            shape = _declared(tensor) if coded else tensor.shape
            total += math.prod(shape) * np.dtype(spec.dtype).itemsize
            if spec.shape and isinstance(spec.shape[0], str):
                rows, shape = shape[0] if shape else 1, shape[1:]
            shapes.append((tensor.name, shape))
        if total > self._max_bytes:
            raise BodyTooLarge(
                f"the tensors take {total} bytes once decoded; at most {self._max_bytes} are taken"
            )
        return (cut, *sorted(shapes)), rows


def _declared(tensor: WireTensor) -> tuple[int, ...]:
    shape = tensor.parameters.get("shape")
    if not isinstance(shape, list) or not all(
        isinstance(dim, int) and not isinstance(dim, bool) and 0 <= dim < 2**40 for dim in shape
    ):
        raise InvalidTensor(f"crossing tensor {tensor.name!r}: {shape!r} is not a shape")
    return tuple(shape)


def _check_outputs(request: InferRequest, outputs: tuple[TensorSpec, ...]) -> None:
    names = [spec.name for spec in outputs]
    for name in request.outputs:
        if name not in names:
            raise InvalidTensor(f"unknown output {name!r}; the outputs are {names}")


def _describe(spec: TensorSpec) -> dict[str, Any]:
    shape = [-1 if isinstance(dim, str) else dim for dim in spec.shape]
    return {"name": spec.name, "datatype": OIP_TYPE[spec.dtype], "shape": shape}
