"""Bad resources and an operator that works on: each is refused at admission, or reported by name.

What the partition Job finds is found by the Job's own program, run on the manifest that the
operator put into the Job, against a real file server; its last words become the pod's.
"""

import functools
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from tests.integration.test_job import constant
from tests.kube.apiserver import Refused
from tests.kube.cluster import CHILDREN
from tests.kube.controllers import JOBS, finish
from tests.kube.operators import configuration, operator, until
from tests.kube.resources import resource
from tests.kube.test_admission import BAD
from tests.tiny_bundle import write_tiny_bundle

pytestmark = pytest.mark.kube

WORKLOAD = ("configmaps", "daemonsets", "services", "secrets")
EVENTS = "/apis/events.k8s.io/v1/namespaces/{}/events"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        """What was asked for is no news."""


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    """A server of models: a good one, one that answers the same whatever it is asked, and none."""
    folder = tmp_path_factory.mktemp("models")
    tiny = write_tiny_bundle(tmp_path_factory.mktemp("tiny") / "tiny", width=16)
    (folder / "good.onnx").write_bytes(tiny.model)
    (folder / "constant.onnx").write_bytes(constant())
    (folder / "none.onnx").write_bytes(b"no model at all")
    handler = functools.partial(Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def of_the_job(web):
    """What only the Job can see: the spec, and what its condition must say."""
    good = f"{web}/good.onnx"
    other = {"name": "nobody", "shape": [0, 3]}
    two = {"name": "x", "image": {"mean": [0.1, 0.2]}}  # the model has three channels
    return {
        "missing": ({"model": {"uri": f"{web}/missing.onnx"}}, "ManifestError", "404"),
        "other-file": (
            {"model": {"uri": good, "digest": "sha256:" + "0" * 64}},
            "ModelNotReadable",
            "the manifest expects sha256:0000",
        ),
        "no-model": ({"model": {"uri": f"{web}/none.onnx"}}, "ModelNotReadable", "not an ONNX"),
        "constant": ({"model": {"uri": f"{web}/constant.onnx"}}, "ProofVacuous", "the same to all"),
        "other-input": ({"model": {"uri": good}, "inputs": [other]}, "UnboundShape", "nobody"),
        "other-image": ({"model": {"uri": good}, "inputs": [two]}, "BundleError", "do not fit"),
    }


# What the operator sees by itself: the spec, the condition, its reason, and its remedy.
OF_THE_OPERATOR = {
    "file": ({"model": {"uri": "file:a.onnx"}}, "Partitioned", "SourceNotReachable", "pvc://"),
    "no-version": (
        {"rollout": {"rollback": "sha256:" + "1" * 64}},
        "Partitioned",
        "UnknownVersion",
        "status.versions",
    ),
    "no-pool": ({"cloud": {"pool": "nowhere"}}, "TailAvailable", "UnknownPool", "spec.cloud.pool"),
    "others-pool": (
        {"cloud": {"pool": "others"}},
        "TailAvailable",
        "NamespaceNotServed",
        "spec.cloud.pool",
    ),
    "full-pool": ({"cloud": {"pool": "full"}}, "TailAvailable", "PoolFull", "Dedicated"),
    "no-devices": (
        {"edge": {"classes": [{"name": "camera"}]}},
        "EdgeAvailable",
        "NoDevices",
        "nodeSelector",
    ),
    "no-node": (
        {"edge": {"classes": [{"name": "a", "nodeSelector": {"kind": "lamp"}}]}},
        "EdgeAvailable",
        "NoNodeMatches",
        "kubectl label node",
    ),
    "no-way-in": (
        {"edge": {"classes": [{"name": "a", "deviceGroup": "phones"}]}},
        "EdgeAvailable",
        "NoExternalEndpoint",
        "gateway.externalUrl",
    ),
}


# What each of these owns once its Job has ended well, beside the Job. Where the pool takes no tail,
# edges would never get a bundle, so nothing is made for them. Where the tail has a place, it is
# started, and what devices need lies ready for those that come later: plan and token, and of a
# class of nodes the DaemonSet and its Service, which follow the labels by themselves. A model that
# cannot be read, or a version that is none, has no Job.
AFTER_THE_JOB = {
    "no-pool": set(),
    "others-pool": set(),
    "full-pool": set(),
    "no-devices": {"configmaps", "secrets"},
    "no-node": set(WORKLOAD),
    "no-way-in": {"configmaps", "secrets"},
}


def run_job(cluster, folder, job):
    """What kubelet and Job controller do: run the Job's program, and write what it said last."""
    (container,) = job["spec"]["template"]["spec"]["containers"]
    root = folder / job["metadata"]["name"]
    (root / "dev").mkdir(parents=True)
    env = os.environ | {item["name"]: item["value"] for item in container["env"]}
    command = [sys.executable, *container["command"][1:], *container["args"], f"--root={root}"]
    done = subprocess.run(command, env=env, capture_output=True, check=False)
    words = json.loads((root / "dev" / "termination-log").read_bytes())
    finish(cluster.server, job, words, failed=done.returncode != 0)


@pytest.fixture(scope="module")
def process(rays, registry, tmp_path_factory):
    """One operator that meets them all, with a pool for one and a pool of somebody else."""
    pools = [
        {"name": "default"},
        {"name": "full", "maxTails": 1},
        {"name": "others", "namespaces": ["elsewhere"]},
    ]
    folder = tmp_path_factory.mktemp("bad")
    with operator(rays, folder, configuration(registry, pools=pools)) as running:
        until(lambda: running.probe("/readyz") == 200, "readiness")
        yield running


def owned(cluster, name):
    """Kinds of what a deployment owns."""
    hybrid = cluster.get(name)["metadata"]["uid"]
    paths = [path for path in CHILDREN if "serviceaccounts" not in path]
    return {
        path.rsplit("/", 1)[1]
        for path in paths
        for item in cluster.items(path)
        if item["metadata"]["ownerReferences"][0]["uid"] == hybrid
    }


def told(cluster, name, reason):
    """Whether people were warned of it."""
    return [
        event
        for event in cluster.items(EVENTS)
        if event["regarding"]["name"] == name
        and event["reason"] == reason
        and event["type"] == "Warning"
    ]


def test_the_operator_works_on_after_every_bad_resource(process, cluster, web, made, tmp_path):
    """Verify that each is refused or reported with reason, remedy and Event, and none half made."""
    as_kubectl = {"fieldValidation": "Strict"}
    for spec, _ in BAD.values():
        with pytest.raises(Refused):
            cluster.server.request("POST", cluster.path, resource(spec, "bad"), params=as_kubectl)
    by_the_job = of_the_job(web)
    assert len(BAD) + len(by_the_job) + len(OF_THE_OPERATOR) >= 60

    cluster.create("first", cloud={"pool": "full"})
    for name, (spec, *_) in by_the_job.items():
        cluster.create(name, **spec)
    jobs = until(lambda: len(found := cluster.items(JOBS)) > len(by_the_job) and found, "Jobs")
    hers = [j for j in jobs if j["metadata"]["labels"]["app.kubernetes.io/instance"] in by_the_job]
    with ThreadPoolExecutor(2) as workers:
        list(workers.map(functools.partial(run_job, cluster, tmp_path), hers))
    for name, (spec, *_) in OF_THE_OPERATOR.items():
        cluster.create(name, **spec)

    for name, (_, code, text) in by_the_job.items():
        message = cluster.wait("Partitioned", "PartitionFailed", name)["message"]
        assert message.startswith(code), message
        assert text in message
        assert owned(cluster, name) == {"jobs"}
        until(lambda name=name: told(cluster, name, "PartitionFailed"), f"an Event of {name}")
    for name, (_, kind, reason, remedy) in OF_THE_OPERATOR.items():
        assert remedy in cluster.wait(kind, reason, name)["message"]
        assert not owned(cluster, name) & set(WORKLOAD)
        until(lambda name=name, reason=reason: told(cluster, name, reason), f"an Event of {name}")
        assert cluster.condition("Ready", name)["status"] == "False"
        assert len(jobs_of(cluster, name)) == (name in AFTER_THE_JOB)

    for name, kinds in AFTER_THE_JOB.items():
        (job,) = jobs_of(cluster, name)
        finish(cluster.server, job, made)
        cluster.wait("Partitioned", "Partitioned", name)  # said after all is written
        assert owned(cluster, name) == {"jobs", *kinds}, name
        _, kind, reason, remedy = OF_THE_OPERATOR[name]
        assert remedy in cluster.wait(kind, reason, name)["message"]
    cluster.delete("first")
    until(lambda: owned(cluster, "full-pool") == {"jobs", *WORKLOAD}, "its turn in the full pool")

    cluster.create("good")
    (job,) = until(lambda: jobs_of(cluster, "good"), "a Job")
    finish(cluster.server, job, made)
    cluster.wait("TailAvailable", "TailDeploying", "good")
    assert owned(cluster, "good") == {"jobs", *WORKLOAD}
    assert process.process.poll() is None
    assert not [line for line in process.said() if line["level"] == "error"]


def jobs_of(cluster, name):
    """The Jobs of a deployment."""
    mark = "app.kubernetes.io/instance"
    return [job for job in cluster.items(JOBS) if job["metadata"]["labels"][mark] == name]
