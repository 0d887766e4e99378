"""What a bundle is made from, as a deployment declares it."""

from dovetail.api import parse_manifest
from dovetail.layout import canonical_json, digest_of
from dovetail_partitioner.declared import made_from


def digits(**spec):
    """What the cost profile's tag, and the folder on one machine, are named by."""
    document = {
        "apiVersion": "dovetail.dev/v1alpha1",
        "kind": "HybridDeployment",
        "metadata": {"name": "page"},
        "spec": {"model": {"uri": "https://models.example/page.onnx"}, **spec},
    }
    inputs = made_from(parse_manifest(document, "test"), "sha256:1", None)
    return digest_of(canonical_json(inputs))[7:19]


def test_a_field_at_its_default_changes_no_name():
    """Verify the very digits, so that a release with one more field finds what was made."""
    assert digits() == "d61c31234ea2"
    assert digits(split={"maxSegments": 6}, quality={"maxError": 0.05}, wire={}) == digits()


def test_what_changes_the_bytes_changes_the_name_and_a_pinned_rung_does_not():
    """Verify that whoever pins a rung goes on with the bundle there is."""
    assert digits(adapt={"mode": "Manual"}, split={"rung": "edge"}) == digits()
    others = [
        {"split": {"maxSegments": 5}},
        {"quality": {"maxError": 0.1}},
        {"wire": {"codecs": ["raw"]}},
        {"inputs": [{"name": "x", "shape": [0, 3]}]},
        {"edge": {"classes": [{"name": "default", "threads": 2}]}},
    ]
    assert len({digits(), *(digits(**spec) for spec in others)}) == len(others) + 1
