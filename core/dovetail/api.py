"""`HybridDeployment`: the one resource a person writes.

The same manifest is taken by `dovetail up` on one machine and by a cluster, so what it means is
defined here and nowhere else. Only what works is offered: a field or a value appears in the release
that keeps its promise, never before.

Every string, list and map is bounded and every rule is a plain pattern or bound, because a
Kubernetes structural schema is generated from these types.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import yaml
from pydantic import Field, StringConstraints, ValidationError, model_validator

from dovetail.bundle import Image
from dovetail.codecs import ACTIVATION_FAMILIES, IMAGE_FAMILIES, INPUT_FAMILIES
from dovetail.errors import ManifestError
from dovetail.plan import Fallback, Privacy
from dovetail.tensor import Document

API_VERSION: Final = "dovetail.dev/v1alpha1"
KIND: Final = "HybridDeployment"

_DURATION = r"^([0-9]{1,9}(\.[0-9]{1,3})?)(ms|s|m|h)$"
_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_LABEL = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"

Duration = Annotated[str, StringConstraints(pattern=_DURATION, max_length=16)]
Label = Annotated[str, StringConstraints(pattern=_LABEL, max_length=63)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
RungId = Annotated[
    str, StringConstraints(pattern=r"^(edge|cloud|cut[1-9][0-9]?)(-[a-z0-9-]{1,32})?$")
]

CODECS = tuple(
    sorted(
        {*ACTIVATION_FAMILIES, *INPUT_FAMILIES, *IMAGE_FAMILIES}
        | {f"{family}-zstd" for family in (*ACTIVATION_FAMILIES, *INPUT_FAMILIES)}
    )
)


def seconds(duration: str) -> float:
    """Seconds of a duration such as `500ms`, `5s` or `2m`.

    Raises:
        ManifestError: not a duration.
    """
    match = re.match(_DURATION, duration)
    if match is None:
        raise ManifestError(f"{duration!r} is not a duration; write one such as 500ms, 5s or 2m")
    return float(match[1]) * _UNITS[match[3]]


class Model(Document):
    """Where the model comes from.

    Attributes:
        uri: `file:PATH` (relative to the manifest), `http://…` or `https://…` of an ONNX file.
        digest: `sha256:…` the file must have.
    """

    uri: Annotated[str, StringConstraints(pattern=r"^(file:|https?://).+", max_length=2048)]
    digest: (
        Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$", max_length=71)] | None
    ) = None


class ImageSpec(Document):
    """The input was made from 8-bit pixels: `x = (pixel * scale - mean) / std`.

    Attributes:
        layout: order of the axes.
        scale: factor on the pixel value.
        mean: per channel, in scaled units.
        std: per channel, in scaled units.
    """

    layout: Literal["NCHW", "NHWC"] = "NCHW"
    scale: Annotated[float, Field(gt=0)] = 1.0 / 255.0
    mean: Annotated[tuple[float, ...], Field(min_length=1, max_length=3)] = (0.0,)
    std: Annotated[tuple[float, ...], Field(min_length=1, max_length=3)] = (1.0,)


class Input(Document):
    """What is known of one of the model's inputs.

    Attributes:
        name: the input's name in the model.
        shape: its dimensions; the first may be 0, which leaves the batch free.
        image: how it was made from pixels, which allows pixel codecs.
    """

    name: Text
    shape: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(max_length=8)] | None = None
    image: ImageSpec | None = None

    def as_image(self) -> Image | None:
        """The image declaration as the bundle stores it."""
        return Image(input=self.name, **self.image.model_dump()) if self.image else None


class Calibration(Document):
    """Rows that codecs are fitted on and every rung is proved on.

    Attributes:
        uri: `file:PATH` of an .npz with one array an input, rows along axis 0.
    """

    uri: Annotated[str, StringConstraints(pattern=r"^(file:|https?://).+", max_length=2048)]


class Split(Document):
    """Mode `Split`: one network cut in two.

    Attributes:
        max_segments: most pieces the model is cut into.
        rung: the rung to keep with `adapt.mode: Manual`.
    """

    max_segments: Annotated[int, Field(ge=1, le=20)] = 6
    rung: RungId | None = None


class Objective(Document):
    """What is made small.

    Attributes:
        quantile: the quantile of request latency that rungs are compared by.
        deadline: most time a request may take; the device answers itself in time for it.
    """

    quantile: Annotated[float, Field(gt=0, lt=1)] = 0.5
    deadline: Duration | None = None


class Quality(Document):
    """How far a codec may change the answers, over the calibration rows.

    Attributes:
        min_top1_agreement: least share of rows whose argmax is the whole model's, for outputs
            that are scores.
        max_error: most max|a-b| / max|a|, for outputs that are not.
    """

    min_top1_agreement: Annotated[float, Field(ge=0, le=1)] = 0.98
    max_error: Annotated[float, Field(ge=0)] = 0.05


class Wire(Document):
    """What may be put on the wire.

    Attributes:
        codecs: codecs allowed; all where not given.
    """

    codecs: Annotated[tuple[str, ...], Field(min_length=1, max_length=32)] | None = None

    @model_validator(mode="after")
    def _known(self) -> Self:
        for codec in self.codecs or ():
            if codec not in CODECS:
                raise ValueError(f"unknown codec {codec!r}; known are {', '.join(CODECS)}")
        return self


class EdgeClass(Document):
    """Devices of one kind.

    Attributes:
        name: the device class.
        runtime: the engine that runs the head.
        threads: threads the engine may use.
        offline: `Local` answers on the device when the cloud is gone, `Fail` refuses.
    """

    name: Label
    runtime: Literal["onnxruntime"] = "onnxruntime"
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    offline: Fallback = "Local"


class Edge(Document):
    """The devices.

    Attributes:
        classes: device classes, each with a plan of its own.
    """

    classes: Annotated[tuple[EdgeClass, ...], Field(min_length=1, max_length=32)] = (
        EdgeClass(name="default"),
    )

    @model_validator(mode="after")
    def _unique(self) -> Self:
        names = [item.name for item in self.classes]
        if len(set(names)) != len(names):
            raise ValueError(f"edge class names repeat: {names}")
        return self


class Replicas(Document):
    """How many replicas of the tail run; Ray Serve scales between them."""

    min: Annotated[int, Field(ge=1, le=1000)] = 1
    max: Annotated[int, Field(ge=1, le=1000)] = 1

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max < self.min:
            raise ValueError(f"replicas.max {self.max} is below replicas.min {self.min}")
        return self


class Cloud(Document):
    """The tail.

    Attributes:
        replicas: how many.
        threads: threads of each replica's engine.
        max_batch: most rows computed together.
    """

    replicas: Replicas = Replicas()
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    max_batch: Annotated[int, Field(ge=1, le=1024)] = 16


class Adapt(Document):
    """When the cut moves.

    Attributes:
        mode: `Auto` moves it, `Manual` keeps `split.rung`, `Paused` keeps what is in use.
        window: how often the rungs are compared.
        hysteresis: least relative gain that is worth a move.
        cooldown: least time between two moves.
    """

    mode: Literal["Auto", "Manual", "Paused"] = "Auto"
    window: Duration = "2s"
    hysteresis: Annotated[float, Field(ge=0, le=0.9)] = 0.1
    cooldown: Duration = "6s"


class Spec(Document):
    """What is wanted."""

    model: Model
    inputs: Annotated[tuple[Input, ...], Field(max_length=64)] = ()
    calibration: Calibration | None = None
    mode: Literal["Split"] = "Split"
    split: Split = Split()
    objective: Objective = Objective()
    quality: Quality = Quality()
    privacy: Privacy = "Open"
    wire: Wire = Wire()
    edge: Edge = Edge()
    cloud: Cloud = Cloud()
    adapt: Adapt = Adapt()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.adapt.mode == "Manual" and self.split.rung is None:
            raise ValueError("adapt.mode Manual needs split.rung: the rung to keep")
        if self.adapt.mode != "Manual" and self.split.rung is not None:
            raise ValueError("split.rung pins a rung, which needs adapt.mode: Manual")
        if sum(item.image is not None for item in self.inputs) > 1:
            raise ValueError("at most one input may be declared an image")
        return self


class Metadata(Document):
    """Name and labels, as Kubernetes has them."""

    name: Label
    namespace: Label = "default"
    labels: Annotated[Mapping[str, str], Field(max_length=64)] = {}
    annotations: Annotated[Mapping[str, str], Field(max_length=64)] = {}


class HybridDeployment(Document):
    """One model, two places."""

    api_version: Literal["dovetail.dev/v1alpha1"] = API_VERSION
    kind: Literal["HybridDeployment"] = KIND
    metadata: Metadata
    spec: Spec

    @property
    def key(self) -> str:
        """`<namespace>/<name>`."""
        return f"{self.metadata.namespace}/{self.metadata.name}"


def load_manifest(path: Path) -> HybridDeployment:
    """Read a manifest.

    Raises:
        ManifestError: no such file, not YAML, more than one document, or against the schema; the
            message names every field that is wrong and what was expected.
    """
    try:
        documents = [doc for doc in yaml.safe_load_all(path.read_text()) if doc is not None]
    except OSError as error:
        raise ManifestError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path} is not YAML: {error}") from error
    if len(documents) != 1 or not isinstance(documents[0], dict):
        raise ManifestError(f"{path} holds {len(documents)} documents; expected one {KIND}")
    return parse_manifest(documents[0], str(path))


def parse_manifest(document: Mapping[str, Any], where: str) -> HybridDeployment:
    """Check a manifest's content; raises `ManifestError` listing every fault."""
    for field, want in (("apiVersion", API_VERSION), ("kind", KIND)):
        if document.get(field) != want:
            raise ManifestError(f"{where}: {field} is {document.get(field)!r}; expected {want!r}")
    try:
        return HybridDeployment.model_validate(document)
    except ValidationError as error:
        faults = [
            f"  {'.'.join(str(part) for part in fault['loc']) or 'spec'}: {fault['msg']}"
            f" (got {str(fault['input'])[:60]!r})"
            for fault in error.errors()
        ]
        raise ManifestError("\n".join([f"{where} breaks the schema:", *faults])) from error
