"""Versions of a model under steady requests: a good one takes over, a bad one never does."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tests.cluster import example, store
from tests.cluster.store import FILES
from tests.kube.operators import until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

FAR = 0.5  # of the largest score: more than a codec's error, less than that of a mixed pair


def mirrored(source, target):
    """The same network for pages seen in a mirror: every kernel is turned around."""
    model = onnx.load(source)
    kernels = {node.input[1] for node in model.graph.node if node.op_type == "Conv"}
    for tensor in model.graph.initializer:
        if tensor.name in kernels:
            turned = np.ascontiguousarray(numpy_helper.to_array(tensor)[..., ::-1])
            tensor.CopyFrom(numpy_helper.from_array(turned, tensor.name))
    onnx.save(model, target)


def scores(model, inputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(model)
    return np.concatenate([session.run(None, {"x": row[None]})[0] for row in inputs])


def status(cluster):
    return example.get(cluster)["status"]


def states(cluster):
    return {one["bundle"]: one["state"] for one in status(cluster)["versions"]}


def becomes(cluster, digest, states_of=()):
    """Wait until a version is live and Ready says so, with others in the states given."""

    def look():
        found = example.conditions(cluster).get("Ready", ("", ""))
        wanted = {digest: "Live", **dict(states_of)}
        return found[:2] == ("True", "Ready") and wanted.items() <= states(cluster).items()

    try:
        until(look, f"{digest} to be live", 240)
    except AssertionError as error:
        raise AssertionError(f"{error}: {example.conditions(cluster)}, {states(cluster)}") from None


def tries(cluster):
    """How many pods each Job that failed had."""
    jobs = cluster.request("GET", f"/apis/batch/v1/namespaces/{example.NAMESPACE}/jobs")["items"]
    return [count for job in jobs if (count := job["status"].get("failed", 0))]


def test_versions_change_under_requests_and_a_bad_one_never_goes_live(
    cluster, stage, traffic, whole, rows
):
    """Verify v1, v2, bad v3 and back to v1: no request fails and no answer is of a mixed pair."""
    mirrored(stage.folder / "model.onnx", cluster.folder / "mirrored.onnx")
    good = (stage.folder / "model.onnx").read_bytes()
    (cluster.folder / "broken.onnx").write_bytes(good[: len(good) // 2])
    for name in ("mirrored.onnx", "broken.onnx"):
        store.put(cluster, cluster.folder / name)
    first = status(cluster)["bundle"]

    model = {"uri": f"{FILES}/mirrored.onnx"}
    example.patch(cluster, {"model": model, "rollout": {"retain": "10s"}})
    second = until(lambda: status(cluster)["bundle"] != first and status(cluster)["bundle"],
                   "another version to go live", 240)  # fmt: skip
    becomes(cluster, second, {first: "Kept"})
    until(lambda: traffic.all()[-1]["version"] == second[7:19], "the edge to change over")

    example.patch(cluster, {"model": {"uri": f"{FILES}/broken.onnx"}})
    until(lambda: example.conditions(cluster)["Partitioned"][:2] == ("False", "PartitionFailed"),
          "the third version to be refused", 180)  # fmt: skip
    now = example.conditions(cluster)
    assert "ModelNotReadable" in now["Partitioned"][2]
    assert tries(cluster) == [1]  # a model that no second try would mend
    assert now["Degraded"][:2] == ("True", "PartitionFailed")
    assert now["Ready"][0] == "True"
    assert states(cluster)[second] == "Live"
    assert {one["version"] for one in traffic.more(12)} == {second[7:19]}

    example.patch(cluster, {"rollout": {"rollback": first}})
    becomes(cluster, first, {second: "Kept"})
    until(lambda: traffic.all()[-1]["version"] == first[7:19], "the edge to go back")

    example.patch(cluster, {"rollout": {"rollback": None}, "model": {"uri": f"{FILES}/model.onnx"}})
    becomes(cluster, first)
    until(lambda: example.conditions(cluster)["Partitioned"][1] == "Partitioned", "all as before")
    expected = {first[7:19]: whole, second[7:19]: scores(cluster.folder / "mirrored.onnx",
                                                        np.load(rows)["x"])}  # fmt: skip
    found = traffic.all()
    assert traffic.failed() == []
    assert {one["version"] for one in found} == set(expected)
    for one in found:
        right, seen = expected[one["version"]][one["row"]], np.array(one["scores"])
        assert np.max(np.abs(seen - right)) <= FAR * np.max(np.abs(right)), one
        assert seen.argmax() == right.argmax(), one
