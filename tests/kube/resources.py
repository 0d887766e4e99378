"""HybridDeployments for tests, as a person would write them."""

from collections.abc import Mapping
from typing import Any

PATH = "/apis/dovetail.dev/v1alpha1/namespaces/default/hybriddeployments"
STRICT = {"dryRun": "All", "fieldValidation": "Strict"}


def resource(spec: Any = None, name: str = "page") -> dict[str, Any]:
    """A resource; the smallest spec that is valid unless one is given."""
    return {
        "apiVersion": "dovetail.dev/v1alpha1",
        "kind": "HybridDeployment",
        "metadata": {"name": name},
        "spec": minimal() if spec is None else spec,
    }


def minimal(**fields: Any) -> dict[str, Any]:
    """The smallest valid spec, with more fields."""
    return {"model": {"uri": "https://models.example/page.onnx"}, **fields}


def pinned(rung: Any, mode: str = "Manual") -> Mapping[str, Any]:
    """A spec that pins a rung."""
    return minimal(adapt={"mode": mode}, split={"rung": rung})


def whole() -> dict[str, Any]:
    """A valid spec in which every field is given."""
    image = {"layout": "NHWC", "scale": 0.5, "mean": [0.1, 0.2, 0.3], "std": [0.5]}
    toleration = {"key": "k.io/a", "operator": "Equal", "value": "b", "effect": "NoSchedule"}
    edge = {
        "name": "pi",
        "runtime": "onnxruntime",
        "threads": 4,
        "offline": "Fail",
        "nodeSelector": {"example.com/kind": "pi"},
        "tolerations": [toleration],
        "resources": {"cpu": "500m", "memory": "1Gi"},
    }
    uri = f"oci://r.example/m@sha256:{'c3' * 32}"
    model = {"uri": uri, "digest": f"sha256:{'a1' * 32}"}
    return {
        "model": model | {"credentials": "pull"},
        "inputs": [{"name": "x", "shape": [0, 3], "image": image}, {"name": "y", "shape": [1]}],
        "calibration": {"uri": "file:rows.npz"},
        "mode": "Split",
        "split": {"maxSegments": 4, "rung": "cut3-int8-zstd"},
        "objective": {"quantile": 0.9, "deadline": "250ms"},
        "quality": {"minTop1Agreement": 0.95, "maxError": 0.1},
        "privacy": "Masked",
        "wire": {"codecs": ["raw", "int8"]},
        "edge": {"classes": [edge, {"name": "phone", "deviceGroup": "phones"}]},
        "cloud": {
            "pool": "Dedicated",
            "endpoint": "https://tails.example:8443/a",
            "replicas": {"min": 2, "max": 3},
            "threads": 2,
            "maxBatch": 8,
        },
        "adapt": {"mode": "Manual", "window": "1.5s", "hysteresis": 0.2, "cooldown": "1m"},
        "rollout": {"retain": "1h", "rollback": f"sha256:{'b2' * 32}"},
    }
