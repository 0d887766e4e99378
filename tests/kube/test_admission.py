"""Bad resources: each refused at admission, in words that say what to change.

The same resources go to `dovetail up`'s reader, which must refuse them too. What admission cannot
see is listed at the end: it is admitted here and others' to report.
"""

import pytest
from tests.kube.apiserver import Refused
from tests.kube.resources import PATH, STRICT, minimal, pinned, resource

from dovetail.api import parse_manifest
from dovetail.errors import ManifestError

pytestmark = pytest.mark.kube

URI = "must begin with file:, http:// or https://"
ARTIFACT = "oci://REGISTRY/REPOSITORY@sha256:DIGEST"
DIGEST = "must be sha256: and 64 hexadecimal digits"
DURATION = "must be a duration such as 500ms, 5s or 2m"
LABEL = "must be lower case letters, digits and -"
RUNG = "must be the id of a rung"
HTTP = "https://models.example/page.onnx"


def model(**fields):
    return {"model": {"uri": HTTP, **fields}}


def image(**fields):
    return minimal(inputs=[{"name": "x", "image": fields}])


def edges(*classes):
    return minimal(edge={"classes": list(classes)})


# What is wrong, the spec, and what the API server must say.
BAD = {
    "no model": ({}, "spec.model: Required value"),
    "a model without a source": ({"model": {}}, "spec.model.uri: Required value"),
    "a model of another scheme": (model(uri="ftp://models.example/a.onnx"), URI),
    "a model that is a bare path": (model(uri="page.onnx"), URI),
    "a scheme and nothing else": (model(uri="https://"), URI),
    "a model over two lines": (model(uri=f"{HTTP}\n"), URI),
    "a model address without end": (model(uri="https://" + "a" * 2048), "Too long"),
    "an artifact by its tag": (model(uri="oci://r.example/m:v1"), ARTIFACT),
    "an artifact of no digest": (model(uri="oci://r.example/m"), ARTIFACT),
    "an artifact by half a digest": (model(uri="oci://r.example/m@sha256:abc"), ARTIFACT),
    "an artifact of no registry": (model(uri=f"oci://m@sha256:{'0' * 64}"), ARTIFACT),
    "a digest of another algorithm": (model(digest="md5:" + "0" * 32), DIGEST),
    "a digest in capitals": (model(digest="sha256:" + "A" * 64), DIGEST),
    "a digest cut short": (model(digest="sha256:abc"), DIGEST),
    "a digest that is a number": (model(digest=7), "must be of type string"),
    "an unknown field": (minimal(colour="red"), "spec.colour"),
    "a field one level too high": (minimal(rung="edge"), "spec.rung"),
    "a field by its Python name": (minimal(cloud={"max_batch": 4}), "spec.cloud.max_batch"),
    "a field in other letters": (minimal(cloud={"maxbatch": 4}), "spec.cloud.maxbatch"),
    "a mode not offered": (minimal(mode="Cascade"), 'supported values: "Split"'),
    "a privacy class not offered": (minimal(privacy="Secret"), '"Open", "Masked", "Private"'),
    "an offline policy not offered": (edges({"name": "a", "offline": "Queue"}), '"Local", "Fail"'),
    "a runtime not offered": (edges({"name": "a", "runtime": "tensorrt"}), '"onnxruntime"'),
    "adapt.mode in small letters": (minimal(adapt={"mode": "auto"}), '"Auto", "Manual", "Paused"'),
    "a duration without a unit": (minimal(adapt={"window": "5"}), DURATION),
    "a duration that is a number": (minimal(adapt={"window": 5}), "must be of type string"),
    "a duration in days": (minimal(adapt={"cooldown": "1d"}), DURATION),
    "a negative deadline": (minimal(objective={"deadline": "-1s"}), DURATION),
    "a window of no time": (minimal(adapt={"window": "0s"}), "must be longer than 0"),
    "a deadline of no time": (minimal(objective={"deadline": "0.0s"}), "must be longer than 0"),
    "Manual with no rung": (minimal(adapt={"mode": "Manual"}), "needs split.rung"),
    "a rung with Auto": (pinned("edge", "Auto"), "needs adapt.mode: Manual"),
    "a rung with Paused": (pinned("edge", "Paused"), "needs adapt.mode: Manual"),
    "a rung that is no rung": (pinned("middle"), RUNG),
    "a rung of cut 0": (pinned("cut0-int8"), RUNG),
    "too many segments": (minimal(split={"maxSegments": 21}), "less than or equal to 20"),
    "no segment": (minimal(split={"maxSegments": 0}), "greater than or equal to 1"),
    "half a segment": (minimal(split={"maxSegments": 1.5}), "must be of type integer"),
    "a count in quotes": (minimal(cloud={"threads": "4"}), "must be of type integer"),
    "no thread": (minimal(cloud={"threads": 0}), "greater than or equal to 1"),
    "a batch too large": (minimal(cloud={"maxBatch": 5000}), "less than or equal to 1024"),
    "fewer replicas at most than at least": (
        minimal(cloud={"replicas": {"min": 3, "max": 2}}),
        "replicas.max must not be below replicas.min",
    ),
    "at least two replicas of at most one": (
        minimal(cloud={"replicas": {"min": 2}}),
        "replicas.max must not be below replicas.min",
    ),
    "a quantile of 1": (minimal(objective={"quantile": 1}), "less than 1"),
    "a quantile of 0": (minimal(objective={"quantile": 0}), "greater than 0"),
    "an agreement above 1": (minimal(quality={"minTop1Agreement": 1.1}), "less than or equal to 1"),
    "a negative error": (minimal(quality={"maxError": -0.1}), "greater than or equal to 0"),
    "a hysteresis above 0.9": (minimal(adapt={"hysteresis": 0.95}), "less than or equal to 0.9"),
    "an unknown codec": (minimal(wire={"codecs": ["int9"]}), 'Unsupported value: "int9"'),
    "no codec allowed": (minimal(wire={"codecs": []}), "should have at least 1 items"),
    "a codec that is no list": (minimal(wire={"codecs": "int8"}), "must be of type array"),
    "a class without a name": (edges({"threads": 2}), "name: Required value"),
    "a class named in capitals": (edges({"name": "Pi"}), LABEL),
    "a class with an endless name": (edges({"name": "a" * 64}), "Too long"),
    "two classes of one name": (edges({"name": "pi"}, {"name": "pi"}), "Duplicate value"),
    "no class": (edges(), "should have at least 1 items"),
    "too many classes": (edges(*({"name": f"c{i}"} for i in range(33))), "at most 32 items"),
    "nodes and a group of devices at once": (
        edges({"name": "a", "nodeSelector": {"kind": "pi"}, "deviceGroup": "phones"}),
        "not both",
    ),
    "a group of devices named in capitals": (edges({"name": "a", "deviceGroup": "Pi"}), LABEL),
    "two inputs of one name": (minimal(inputs=[{"name": "x"}] * 2), "Duplicate value"),
    "two images": (
        minimal(inputs=[{"name": "x", "image": {}}, {"name": "y", "image": {}}]),
        "at most one of inputs may be declared an image",
    ),
    "an input without a name": (minimal(inputs=[{"name": ""}]), "at least 1 chars long"),
    "a negative dimension": (
        minimal(inputs=[{"name": "x", "shape": [-1, 3]}]),
        "greater than or equal to 0",
    ),
    "too many dimensions": (minimal(inputs=[{"name": "x", "shape": [1] * 9}]), "at most 8 items"),
    "a null dimension": (minimal(inputs=[{"name": "x", "shape": [None]}]), "must be of type"),
    "pixels that all become 0": (image(scale=0), "greater than 0"),
    "pixels divided by 0": (image(std=[0.0]), "greater than 0"),
    "means of four channels": (image(mean=[0.1] * 4), "at most 3 items"),
    "a layout not known": (image(layout="CHW"), '"NCHW", "NHWC"'),
    "a spec that is a list": ([], "must be of type object"),
    "a section that is a list": (minimal(cloud=[]), "must be of type object"),
    "a rollback to no digest": (minimal(rollout={"rollback": "v1"}), DIGEST),
    "versions retained for days": (minimal(rollout={"retain": "2d"}), DURATION),
    "a calibration without a source": (minimal(calibration={}), "uri: Required value"),
}

# Right in form, and wrong only in the light of the model, the registry or the nodes.
FOR_THE_OPERATOR = {
    "a model that is not there": model(uri="https://models.example/missing.onnx"),
    "a model in a file, which a cluster has not": model(uri="file:page.onnx"),
    "a digest of another file": model(digest="sha256:" + "0" * 64),
    "an input that the model has not": minimal(inputs=[{"name": "nobody", "shape": [0, 3]}]),
    "a rung that the ladder has not": pinned("cut19-int8"),
    "an image that its figures do not fit": image(mean=[0.1, 0.2], std=[1.0, 1.0, 1.0]),
    "a codec that no rung can use": minimal(wire={"codecs": ["jpeg75"]}),
}

# Neither can say: what a replica takes of a pool shows once it runs, and Ray Serve goes on starting
# them, which TailAvailable says as TailDeploying.
FOR_RAY_SERVE = {
    "more replicas than the pool holds": minimal(cloud={"replicas": {"min": 1000, "max": 1000}}),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_resource_is_refused_at_admission_and_on_one_machine(hybrid, what):
    """Verify that the API server says what is wrong, and that `dovetail up` refuses it too."""
    spec, message = BAD[what]

    with pytest.raises(Refused) as refused:
        hybrid.request("POST", PATH, resource(spec), params=STRICT)
    with pytest.raises(ManifestError):
        parse_manifest(resource(spec), "test")

    assert refused.value.code in (400, 422)
    assert message in refused.value.message


@pytest.mark.parametrize("name", ["Page", "page.v2", "a" * 64, "-page", ""])
def test_a_bad_name_is_refused_at_admission_and_on_one_machine(hybrid, name):
    """Verify that a name must be usable for everything that is made from the resource."""
    with pytest.raises(Refused, match=r"metadata\.name|name or generateName is required"):
        hybrid.request("POST", PATH, resource(name=name), params=STRICT)
    with pytest.raises(ManifestError, match=r"metadata\.name"):
        parse_manifest(resource(name=name), "test")


@pytest.mark.parametrize("what", FOR_THE_OPERATOR | FOR_RAY_SERVE)
def test_what_only_others_can_see_is_admitted(hybrid, what):
    """Verify that admission guesses nothing: these become conditions, not refusals."""
    spec = (FOR_THE_OPERATOR | FOR_RAY_SERVE)[what]

    assert hybrid.request("POST", PATH, resource(spec), params=STRICT)["spec"]["model"]
    assert parse_manifest(resource(spec), "test").spec.model


def test_admission_still_takes_a_good_resource_after_all_of_them(hybrid):
    """Verify that the table tests refusals, not a server that refuses everything."""
    assert hybrid.request("POST", PATH, resource(), params=STRICT)["spec"]["mode"] == "Split"
