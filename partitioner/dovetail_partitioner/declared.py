"""What a `HybridDeployment` says of how its model is cut: the same on one machine and in a Job."""

from collections.abc import Mapping
from typing import Any

from dovetail.api import HybridDeployment
from dovetail_partitioner.partition import Options


def options(deployment: HybridDeployment) -> Options:
    """The options that a deployment declares."""
    spec = deployment.spec
    bind: Mapping[str, int] = {
        f"{item.name}:{axis}": size
        for item in spec.inputs
        for axis, size in enumerate(item.shape or ())
        if size
    }
    given: dict[str, Any] = {"codecs": spec.wire.codecs} if spec.wire.codecs else {}
    return Options(
        bind=bind,
        image=next((item.as_image() for item in spec.inputs if item.image), None),
        quality=spec.quality,
        max_segments=spec.split.max_segments,
        threads=spec.edge.classes[0].threads,
        declared=spec.inputs,
        **given,
    )


def made_from(
    deployment: HybridDeployment, model: str, calibration: str | None
) -> dict[str, object]:
    """Everything that a bundle follows from but the cost profile, as JSON values.

    Fields at their defaults are left out, so that a release with one more field finds what an
    earlier one made.

    Args:
        deployment: the deployment.
        model: digest of the model's file.
        calibration: digest of the rows' file; None where they are made up.
    """
    spec = deployment.spec
    return {
        "model": model,
        "calibration": calibration,
        "spec": {
            **spec.model_dump(
                mode="json", include={"inputs", "quality", "wire"}, exclude_defaults=True
            ),
            **spec.split.model_dump(include={"max_segments"}, exclude_defaults=True),
        },
        "name": deployment.metadata.name,
        "threads": spec.edge.classes[0].threads,
    }
