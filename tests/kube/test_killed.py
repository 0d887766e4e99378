"""An operator that is killed again and again leaves exactly what one that never was leaves.

Both tell the same story of deployments on an API server of their own. What differs in the end is a
fault: an object that was made twice or not at all, or one that nobody looked after again.
"""

import itertools
import json
import random
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest
from tests.kube.apiserver import Refused
from tests.kube.cluster import CHILDREN, Cluster
from tests.kube.controllers import JOBS, finish, roll_out, serve
from tests.kube.operators import NAMESPACE, configuration, operator, prepared, until

pytestmark = pytest.mark.kube

KILLS = 12
LONGEST = 1.2  # seconds that one may lead before it is killed
SHORT = "--lease-seconds=2"
LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/dovetail-operator"
OTHER = "https://models.example/other.onnx"
PATIENCE = 90
QUIET = 6.0  # seconds; who writes pools may rest for 2, and a write on a busy machine takes one
SETS = "/apis/apps/v1/namespaces/{}/daemonsets"
MADE = (
    *CHILDREN,
    "/apis/apps/v1/namespaces/{}/controllerrevisions",
    "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
    "/apis/ray.io/v1/namespaces/{}/rayservices",
    "/apis/dovetail.dev/v1alpha1/namespaces/{}/hybriddeployments",
)


@contextmanager
def alone(folder):
    """An API server with a namespace and a node of the class, for one operator's story."""
    with prepared(folder) as server:
        node = {"apiVersion": "v1", "kind": "Node"}
        node["metadata"] = {"name": "one", "labels": {"kind": "camera"}}
        server.request("POST", "/api/v1/nodes", node)
        yield Cluster(server, "pages")


@contextmanager
def controllers(cluster, made, second):
    """Jobs end, DaemonSets roll out and tails run, as soon as they are asked for."""
    ended, done = threading.Event(), set()

    def once():
        for job in cluster.items(JOBS):
            name = job["metadata"]["name"]
            if name not in done:
                done.add(name)
                finish(cluster.server, job, second if OTHER in json.dumps(job) else made)
        for one in cluster.items(SETS):
            if one["status"].get("observedGeneration") != one["metadata"]["generation"]:
                roll_out(cluster.server, one)
        for one in cluster.server.request("GET", "/apis/ray.io/v1/rayservices")["items"]:
            serve(cluster.server, one)

    def run():
        while not ended.wait(0.1):
            try:
                once()
            except Refused:  # what was listed has gone, or is another by now
                continue

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def story(cluster, gate):
    """What a person does: each step once the one before has come to what it should.

    Args:
        cluster: their namespace.
        gate: waits until so many operators were killed.
    """
    for name in ("stays", "changes", "goes"):
        cluster.create(name)
    ready(cluster, "stays", "changes", "goes")
    gate(3)
    first = live(cluster)
    cluster.patch("changes", model={"uri": OTHER})
    cluster.delete("goes")
    cluster.create("comes", cloud={"pool": "Dedicated"})
    until(lambda: live(cluster) != first, "another version", PATIENCE)
    ready(cluster, "changes", "comes")
    gate(6)
    cluster.patch("stays", adapt={"mode": "Manual"}, split={"rung": "cut1-int8"})
    until(lambda: reason(cluster, "Moving", "stays") == "Pinned", "the pin", PATIENCE)
    gate(9)
    cluster.patch("changes", rollout={"rollback": first})
    until(lambda: live(cluster) == first, "the first version again", PATIENCE)
    ready(cluster, "changes")


def live(cluster):
    return cluster.get("changes")["status"]["bundle"]


def ready(cluster, *names):
    for name in names:
        until(
            lambda name=name: reason(cluster, "Ready", name) == "Ready",
            f"{name} to be Ready",
            PATIENCE,
        )


def reason(cluster, kind, name):
    return (cluster.condition(kind, name) or {}).get("reason")


def undisturbed(folder, registry, *said):
    """What an operator makes that nobody disturbs."""
    with (
        alone(folder) as cluster,
        operator(cluster.server, folder, configuration(registry)),
        controllers(cluster, *said),
    ):
        story(cluster, gate=lambda kills: None)
        return at_rest(cluster)


def killed(folder, registry, delays, *said):
    """What the last operator makes of what those left that were killed."""
    kills = []
    with (
        alone(folder) as cluster,
        controllers(cluster, *said),
        ThreadPoolExecutor(1) as person,
        ExitStack() as stack,
    ):

        def start():
            flags = (cluster.server, folder, configuration(registry), SHORT)
            return stack.enter_context(operator(*flags))

        def gate(count):
            until(lambda: len(kills) >= count, f"{count} kills", PATIENCE)

        told = person.submit(story, cluster, gate)
        leader = start()
        for number, delay in enumerate(delays):
            cluster.create(f"brief-{number}")  # work for whoever leads next
            standby = start()
            until(lambda who=leader: leads(cluster, who), "it to lead")
            time.sleep(delay)
            leader.process.kill()
            kills.append(delay)
            cluster.delete(f"brief-{number}")
            leader = standby
        told.result()
        return at_rest(cluster)


def leads(cluster, process):
    identity = next(line["lease"] for line in process.said() if "lease" in line)
    return cluster.server.request("GET", LEASE)["spec"]["holderIdentity"] == identity


def at_rest(cluster):
    """All that there is, once it has stayed the same for a while."""
    found = until(lambda: unmoved(cluster), "nothing to be written any more", PATIENCE)
    return {key: found[key] for key in sorted(found)}


def unmoved(cluster):
    before = everything(cluster)
    time.sleep(QUIET)
    return before if everything(cluster) == before else None


def everything(cluster):
    """What the operator made and says, by kind, namespace and name.

    Nobody collects garbage on an API server alone, so what belonged to a deployment that is gone is
    left out; what a pool or a status says of one is not.
    """
    alive = {one["metadata"]["uid"] for one in cluster.items(cluster.path)}
    alive |= {
        one["metadata"]["uid"]
        for one in cluster.server.request("GET", "/api/v1/configmaps")["items"]
    }
    found = {}
    for path, namespace in itertools.product(MADE, ("pages", NAMESPACE)):
        for item in cluster.items(path.format(namespace)):
            owners = {one["uid"] for one in item["metadata"].get("ownerReferences", ())}
            if owners <= alive:
                kind = path.rpartition("/")[2]
                found[kind, namespace, item["metadata"]["name"]] = plain(kind, item)
    return found


# of an object: who, when and where; of ours: digests of content with uids in it, and counters
_PASSING = {
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "generation",
    "managedFields",
    "lastTransitionTime",
    "clusterIP",
    "clusterIPs",
    "controller-uid",
    "batch.kubernetes.io/controller-uid",
    "dovetail.dev/applied",
    "deprecated.daemonset.template.generation",
}
_RANDOM = re.compile(r"[0-9a-f]{64}|\d{4}-\d\d-\d\dT[0-9:.]+Z")
_EPOCH = 1e9  # seconds; nothing else is as large


def plain(kind, item):
    """An object without what is another each time; what a test's controllers say is not ours."""
    if kind == "secrets":
        item = item | {"data": sorted(item["data"])}
    if kind != "hybriddeployments":
        item = {key: value for key, value in item.items() if key != "status"}
    return lasting(item)


def lasting(value):
    if isinstance(value, dict):
        return {key: lasting(one) for key, one in value.items() if key not in _PASSING}
    if isinstance(value, list):
        return [lasting(one) for one in value]
    if isinstance(value, (int, float)) and value > _EPOCH:
        return "a time"
    if isinstance(value, str) and value.startswith("{"):
        return lasting(json.loads(value))
    if isinstance(value, str) and _RANDOM.fullmatch(value):
        return "of its own"
    return value


def test_an_operator_killed_at_any_point_leaves_what_one_that_never_was_leaves(
    registry, made, second, tmp_path
):
    """Verify it object by object, after kills at moments spread over its work."""
    seed = random.randrange(1 << 32)
    dice = random.Random(seed)
    delays = [dice.uniform(0, LONGEST) for _ in range(KILLS)]
    print(f"seed {seed}: killed after {', '.join(f'{one:.2f}' for one in delays)} s of leading")
    for name in ("undisturbed", "killed"):
        (tmp_path / name).mkdir()
    with ThreadPoolExecutor(2) as pool:
        expected = pool.submit(undisturbed, tmp_path / "undisturbed", registry, made, second)
        found = pool.submit(killed, tmp_path / "killed", registry, delays, made, second)

    result = found.result()
    assert result.keys() == expected.result().keys()
    differing = {
        key: (result[key], one) for key, one in expected.result().items() if result[key] != one
    }
    assert differing == {}
