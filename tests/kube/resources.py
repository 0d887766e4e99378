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
