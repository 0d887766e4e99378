"""`HybridDeployment`: the one resource a person writes.

The same manifest is taken by `dovetail up` on one machine and by a cluster, so what it means is
defined here and nowhere else. Only what works is offered: a field or a value appears in the release
that keeps its promise, never before. The `CustomResourceDefinition` is generated from these types
(`dovetail.crd`): every bound, message and docstring is also what the API server enforces and
`kubectl explain` prints.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal

import yaml
from pydantic import AfterValidator, Field, StringConstraints, ValidationError, WithJsonSchema

from dovetail.codecs import ACTIVATION_FAMILIES, IMAGE_FAMILIES, INPUT_FAMILIES
from dovetail.encoding import Image
from dovetail.errors import ManifestError
from dovetail.placement import Cloud, Edge, Label
from dovetail.plan import Privacy
from dovetail.rules import Checked, Keyed, Matches, Rule

API_VERSION: Final = "dovetail.dev/v1alpha1"
KIND: Final = "HybridDeployment"

_DURATION = r"^([0-9]{1,9}(\.[0-9]{1,3})?)(ms|s|m|h)$"
_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}

Duration = Annotated[
    str,
    StringConstraints(max_length=16),
    Matches(_DURATION, "must be a duration such as 500ms, 5s or 2m"),
]
Text = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
RungId = Annotated[
    str,
    StringConstraints(max_length=40),
    Matches(
        r"^(edge|cloud|cut[1-9][0-9]?)(-[a-z0-9-]{1,32})?$",
        "must be the id of a rung, such as edge, cloud-uint8 or cut3-int8",
    ),
]
Uri = Annotated[
    str,
    StringConstraints(max_length=2048),
    Matches(r"^(file:|https?://).+$", "must begin with file:, http:// or https://"),
]
ModelUri = Annotated[
    str,
    StringConstraints(max_length=2048),
    Matches(
        r"^((file:|https?://|pvc://[a-z0-9][-a-z0-9.]{0,252}/).+"
        r"|oci://[A-Za-z0-9.:\[\]-]+/[a-z0-9][a-z0-9._/-]*@sha256:[0-9a-f]{64})$",
        "must begin with file:, http:// or https://, or be pvc://CLAIM/PATH or "
        "oci://REGISTRY/REPOSITORY@sha256:DIGEST",
    ),
]
Digest = Annotated[
    str,
    StringConstraints(max_length=71),
    Matches(r"^sha256:[0-9a-f]{64}$", "must be sha256: and 64 hexadecimal digits, as sha256sum"),
]
Dimension = Annotated[int, Field(ge=0, le=2**31 - 1)]
Positive = Annotated[float, Field(gt=0)]

CODECS = tuple(
    sorted(
        {*ACTIVATION_FAMILIES, *INPUT_FAMILIES, *IMAGE_FAMILIES}
        | {f"{family}-zstd" for family in (*ACTIVATION_FAMILIES, *INPUT_FAMILIES)}
    )
)


def _known_codec(name: str) -> str:
    if name not in CODECS:
        raise ValueError(f"unknown codec {name!r}; known are {', '.join(CODECS)}")
    return name


CodecName = Annotated[
    str, AfterValidator(_known_codec), WithJsonSchema({"type": "string", "enum": list(CODECS)})
]


def seconds(duration: str) -> float:
    """Seconds of a duration such as `500ms`, `5s` or `2m`.

    Raises:
        ManifestError: not a duration.
    """
    match = re.fullmatch(_DURATION, duration)
    if match is None:
        raise ManifestError(f"{duration!r} is not a duration; write one such as 500ms, 5s or 2m")
    return float(match[1]) * _UNITS[match[3]]


class Model(Checked):
    """Where the model comes from.

    Attributes:
        uri: where an ONNX file is: `http://…` or `https://…`; on one machine also `file:PATH`,
            relative to the manifest; in a cluster also `pvc://CLAIM/PATH` and
            `oci://REGISTRY/REPOSITORY@sha256:…`, an artifact of which it is the only layer.
        digest: `sha256:…` the file must have.
        credentials: Secret of type kubernetes.io/dockerconfigjson in the same namespace, for
            `oci://` from a registry that asks who one is.
    """

    uri: ModelUri
    digest: Digest | None = None
    credentials: Label | None = None

    rules: ClassVar = (
        Rule(
            holds=lambda self: self.credentials is None or self.uri.startswith("oci://"),
            cel="!has(self.credentials) || self.uri.startsWith('oci://')",
            message="model.credentials are for a model.uri that begins with oci://",
        ),
    )


class ImageSpec(Checked):
    """The input was made from 8-bit pixels: `x = (pixel * scale - mean) / std`.

    Attributes:
        layout: order of the axes.
        scale: factor on the pixel value, often 1/255.
        mean: per channel, or one for all, in scaled units.
        std: per channel, or one for all, in scaled units; not 0.
    """

    layout: Literal["NCHW", "NHWC"] = "NCHW"
    scale: Positive = 1.0 / 255.0
    mean: Annotated[tuple[float, ...], Field(min_length=1, max_length=3)] = (0.0,)
    std: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=3)] = (1.0,)


class Input(Checked):
    """What is known of one of the model's inputs.

    Attributes:
        name: the input's name in the model.
        shape: its dimensions; the first may be 0, which leaves the batch free.
        image: how it was made from pixels, which allows pixel codecs.
    """

    name: Text
    shape: Annotated[tuple[Dimension, ...], Field(max_length=8)] | None = None
    image: ImageSpec | None = None

    def as_image(self) -> Image | None:
        """The image declaration as the bundle stores it."""
        return Image(input=self.name, **self.image.model_dump()) if self.image else None


class Calibration(Checked):
    """Rows that codecs are fitted on and every rung is proved on.

    Attributes:
        uri: an .npz with one array an input, rows along axis 0: `http://…` or `https://…`; on one
            machine also `file:PATH`, relative to the manifest.
    """

    uri: Uri


class Split(Checked):
    """Mode `Split`: one network cut in two.

    Attributes:
        max_segments: most pieces the model is cut into.
        rung: the rung to keep with `adapt.mode: Manual`.
    """

    max_segments: Annotated[int, Field(ge=1, le=20)] = 6
    rung: RungId | None = None


class Objective(Checked):
    """What is made small.

    Attributes:
        quantile: the quantile of request latency that rungs are compared by.
        deadline: most time a request may take; the device answers itself in time for it.
    """

    quantile: Annotated[float, Field(gt=0, lt=1)] = 0.5
    deadline: Duration | None = None

    rules: ClassVar = (
        Rule(
            holds=lambda self: self.deadline is None or seconds(self.deadline) > 0,
            cel="!has(self.deadline) || self.deadline.matches('[1-9]')",
            message="objective.deadline must be longer than 0; leave it out for none",
        ),
    )


class Quality(Checked):
    """How far a codec may change the answers, over the calibration rows.

    Attributes:
        min_top1_agreement: least share of rows whose argmax is the whole model's, for outputs
            that are scores.
        max_error: most max|a-b| / max|a|, for outputs that are not.
    """

    min_top1_agreement: Annotated[float, Field(ge=0, le=1)] = 0.98
    max_error: Annotated[float, Field(ge=0)] = 0.05


class Wire(Checked):
    """What may be put on the wire.

    Attributes:
        codecs: codecs allowed; all where not given.
    """

    codecs: Annotated[tuple[CodecName, ...], Field(min_length=1, max_length=32)] | None = None


class Adapt(Checked):
    """When the cut moves.

    Attributes:
        mode: `Auto` moves it, `Manual` keeps `split.rung`, `Paused` keeps what is in use.
        window: how often the rungs are compared. In a cluster a pool's measurements are read once
            for all its deployments, every 1 to 30 s: as often as the shortest window among those
            with mode `Auto` says, and more rarely while nothing is asked.
        hysteresis: least relative gain that is worth a move.
        cooldown: least time between two moves.
    """

    mode: Literal["Auto", "Manual", "Paused"] = "Auto"
    window: Duration = "2s"
    hysteresis: Annotated[float, Field(ge=0, le=0.9)] = 0.1
    cooldown: Duration = "6s"

    rules: ClassVar = (
        Rule(
            holds=lambda self: seconds(self.window) > 0,
            cel="self.window.matches('[1-9]')",
            message="adapt.window must be longer than 0, such as 2s",
        ),
    )


class Rollout(Checked):
    """How another version takes over; only in a cluster.

    A version is a bundle. The tail of a new one is started beside the old; once it serves, devices
    are told, fetch the bundle while they go on answering, and change over between two requests. A
    version that cannot be made or served never takes over.

    Attributes:
        retain: how long the tail of an earlier version stays after a device last reported that
            version.
        rollback: digest of an earlier version, as `status.versions` lists them, to go back to. As
            long as it is given that version is kept, whatever `model` says; taking it out goes
            forward again.
    """

    retain: Duration = "10m"
    rollback: Digest | None = None


class Spec(Checked):
    """What is wanted.

    Attributes:
        inputs: the model's inputs that need a word: dimensions to bind, how pixels became them.
        mode: `Split` cuts one network in two.
        privacy: what may leave the device: `Open` all, `Masked` no raw input, `Private` nothing
            derived from the input.
    """

    model: Model
    inputs: Annotated[tuple[Input, ...], Field(max_length=64), Keyed("name")] = ()
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
    rollout: Rollout = Rollout()

    rules: ClassVar = (
        Rule(
            holds=lambda self: self.adapt.mode != "Manual" or self.split.rung is not None,
            cel="self.adapt.mode != 'Manual' || has(self.split.rung)",
            message="adapt.mode Manual needs split.rung: the rung to keep",
        ),
        Rule(
            holds=lambda self: self.adapt.mode == "Manual" or self.split.rung is None,
            cel="self.adapt.mode == 'Manual' || !has(self.split.rung)",
            message="split.rung pins a rung, which needs adapt.mode: Manual",
        ),
        Rule(
            holds=lambda self: sum(item.image is not None for item in self.inputs) <= 1,
            cel="self.inputs.filter(item, has(item.image)).size() <= 1",
            message="at most one of inputs may be declared an image",
        ),
    )


class Metadata(Checked):
    """Name and labels, as Kubernetes has them.

    Attributes:
        name: name of the deployment, also of its endpoint.
        namespace: where it lives.
        labels: as Kubernetes has them; not read by Dovetail.
        annotations: as Kubernetes has them; in a cluster `dovetail.dev/slowdown` is read, a factor
            by which the edges on nodes are slowed down, and no other.
    """

    name: Label
    namespace: Label = "default"
    labels: Annotated[Mapping[str, str], Field(max_length=64)] = {}
    annotations: Annotated[Mapping[str, str], Field(max_length=64)] = {}


class HybridDeployment(Checked):
    """One model, two places: its head on edge devices, its tail in a cluster, a cut that moves.

    Attributes:
        api_version: version of this schema.
        kind: always `HybridDeployment`.
    """

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
        return HybridDeployment.model_validate(document, strict=True, by_name=False)
    except ValidationError as error:
        faults = error.errors()
        # a list is also said to be too short when it lost an item to a fault of its own
        within = {fault["loc"][:end] for fault in faults for end in range(len(fault["loc"]))}
        lines = [
            f"  {'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}"
            f" (got {str(fault['input'])[:60]!r})"
            for fault in faults
            if fault["loc"] not in within
        ]
        raise ManifestError("\n".join([f"{where} breaks the schema:", *lines])) from error
