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
from typing import Any, Self

import numpy as np

from dovetail.bundle import Bundle, BundleConfig, RungSpec
from dovetail.codecs import CodecSet
from dovetail.errors import BodyTooLarge, InvalidTensor, UnknownModel, UnknownVersion
from dovetail.tensor import OIP_TYPE, Array, TensorSpec, check_inputs
from dovetail.wire import (
    InferRequest,
    InferResponse,
    WireTensor,
    build_response,
    parse_request,
    shape_of,
)
from dovetail_serving.engine import Answer, Job

PLATFORM = "onnx_dovetail"


@dataclass(frozen=True, slots=True)
class Call:
    """What a path asks for; looked up, never computed, for each request.

    Attributes:
        rung: the rung, or None for the whole model on raw input.
        version: the version to answer.
        cut: where the request enters.
        inputs: the tensors it brings.
        outputs: the outputs it gets.
    """

    rung: RungSpec | None
    version: str
    cut: int
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]

    @classmethod
    def of(cls, config: BundleConfig, version: str, rung: RungSpec | None) -> Self:
        """The call of a rung, or of the whole model."""
        cut = rung.cut if rung else 0
        names = config.crossing(cut) if rung else [spec.name for spec in config.inputs]
        return cls(
            rung,
            version,
            cut,
            {name: config.spec(name) for name in names},
            {spec.name: spec for spec in config.remote_outputs(cut)},
        )


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
        named = {f"{self._version}.{rung.id}": rung for rung in crossing}
        self._calls: dict[str | None, Call] = {
            version: Call.of(self._config, version, rung)
            for version, rung in {self._version: None, **named}.items()
        }
        self._calls[None] = self._calls[self._version]

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
        call = self._calls.get(version)
        if call is None:
            raise UnknownVersion(
                f"version {version!r} of {name!r} is not served here; served are "
                f"{self._versions()}; fetch the plan again"
            )
        return call

    def job(self, call: Call, body: bytes, header_length: str | None) -> Job:
        """Parse a request's message; its tensors are decoded later, in a compute thread.

        Raises:
            InvalidMessage: not an inference message.
            InvalidTensor: a tensor is not as declared, or an unknown output is asked for.
            BodyTooLarge: the tensors would take more than the bound.
        """
        request = parse_request(body, header_length)
        _check_outputs(request, call)
        key, rows = self._signature(request, call)

        def decode() -> Mapping[str, Array]:
            if call.rung is None:
                feed = request.arrays()
                check_inputs(self._config.inputs, feed)
                return feed
            return self._codecs.unpack(call.rung.codec, tuple(call.inputs), request.inputs)

        def encode(found: Mapping[str, Array]) -> Answer:
            tensors = tuple(WireTensor.of(name, found[name]) for name in call.outputs)
            answer = InferResponse(self.name, call.version, tensors, id=request.id)
            return build_response(answer, request)

        return Job(call.cut, key, rows, decode, encode)

    def metadata(self, call: Call) -> bytes:
        """The protocol's model metadata, as JSON."""
        inputs = [_describe(spec) for spec in call.inputs.values()]
        if call.rung is not None:
            inputs = [{"name": name, "datatype": "UINT8", "shape": [-1]} for name in call.inputs]
        return json.dumps(
            {
                "name": self.name,
                "versions": self._versions(),
                "platform": PLATFORM,
                "inputs": inputs,
                "outputs": [_describe(spec) for spec in call.outputs.values()],
            }
        ).encode()

    def _versions(self) -> list[str]:
        return [version for version in self._calls if version is not None]

    def _signature(self, request: InferRequest, call: Call) -> tuple[tuple[object, ...], int]:
        """What a request must share to be computed with another, and its rows."""
        total, rows, shapes = 0, 1, []
        for tensor in request.inputs:
            spec = call.inputs.get(tensor.name)
            if spec is None:
                raise InvalidTensor(
                    f"unknown input {tensor.name!r}; the inputs are {sorted(call.inputs)}"
                )
            shape = (
                tensor.shape
                if call.rung is None
                else shape_of(tensor.name, tensor.parameters.get("shape"))
            )
            total += math.prod(shape) * np.dtype(spec.dtype).itemsize
            if spec.shape and isinstance(spec.shape[0], str):
                rows, shape = shape[0] if shape else 1, shape[1:]
            shapes.append((tensor.name, shape))
        if total > self._max_bytes:
            raise BodyTooLarge(
                f"the tensors take {total} bytes once decoded; at most {self._max_bytes} are taken"
            )
        return (call.cut, *sorted(shapes)), rows


def _check_outputs(request: InferRequest, call: Call) -> None:
    for name in request.outputs:
        if name not in call.outputs:
            raise InvalidTensor(f"unknown output {name!r}; the outputs are {list(call.outputs)}")


def _describe(spec: TensorSpec) -> dict[str, Any]:
    shape = [-1 if isinstance(dim, str) else dim for dim in spec.shape]
    return {"name": spec.name, "datatype": OIP_TYPE[spec.dtype], "shape": shape}
