"""Many deployments at once, and none left behind: real API server, real garbage collector."""

import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from tests.kube.apiserver import _free_ports
from tests.kube.binaries import find
from tests.kube.cluster import CHILDREN, RAYS, Cluster
from tests.kube.controllers import JOBS, finish, roll_out, serve
from tests.kube.operators import configuration, operator, until

from dovetail.errors import MissingTool

pytestmark = pytest.mark.kube

COUNT = 1000
POOLS = 10


@pytest.fixture
def collector(rays, tmp_path):
    """The real garbage collector, of kube-controller-manager."""
    try:
        program = find("kube-controller-manager")
    except MissingTool as error:
        pytest.skip(str(error))
    (port,) = _free_ports(1)
    command = [
        str(program.path),
        f"--kubeconfig={rays.kubeconfig}",
        "--controllers=garbage-collector-controller",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
    ]
    with (tmp_path / "collector.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    yield process
    process.kill()
    process.wait()


@pytest.mark.usefixtures("collector")
def test_a_deleted_deployment_leaves_nothing_behind(rays, registry, cluster, made, tmp_path):
    """Verify that the collector takes every child, and that the pool forgets the tail."""
    with operator(rays, tmp_path, configuration(registry)):
        cluster.create()
        cluster.create("other", cloud={"pool": "Dedicated"})
        for job in until(lambda: len(cluster.items(JOBS)) == 2 and cluster.items(JOBS), "Jobs"):
            finish(rays, job, made)
        cluster.serving()
        own = f"/apis/ray.io/v1/namespaces/{cluster.namespace}/rayservices"
        until(lambda: cluster.items(own), "a pool of its own")

        cluster.delete()
        cluster.delete("other")

        until(lambda: not cluster.children() and not cluster.items(own), "nothing")
        until(lambda: not cluster.items(RAYS), "no pool")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_thousand_deployments_become_ready_and_then_nothing_is_written(
    rays, registry, made, tmp_path
):
    """Verify that all converge, through ten pools, and that the operator then is quiet."""
    pools = [{"name": f"pool{index}"} for index in range(POOLS)]
    cluster = Cluster(rays, "many")
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "many"}}
    node["metadata"]["labels"] = {"kind": "camera"}
    rays.request("POST", "/api/v1/nodes", node)
    with operator(rays, tmp_path, configuration(registry, pools=pools)) as process:
        began = time.monotonic()
        with ThreadPoolExecutor(4) as workers:
            list(
                workers.map(
                    lambda i: cluster.create(f"hd{i}", cloud={"pool": f"pool{i % POOLS}"}),
                    range(COUNT),
                )
            )
            done = set()

            def controllers():
                """One round of what Job controller, kubelets and KubeRay would do."""
                for kind, act in ((JOBS, end), (CHILDREN[-1], ready)):
                    todo = [i for i in cluster.items(kind) if i["metadata"]["uid"] not in done]
                    list(workers.map(act, todo))
                    done.update(item["metadata"]["uid"] for item in todo)
                for pool in cluster.items(RAYS):
                    mark = (pool["metadata"]["uid"], pool["metadata"]["generation"])
                    if mark not in done:
                        serve(rays, pool)
                        done.add(mark)
                hybrids = cluster.items(cluster.path)
                return sum(is_ready(item) for item in hybrids) == COUNT

            def end(job):
                finish(rays, job, made)

            def ready(pods):
                roll_out(rays, pods)

            until(controllers, "a thousand to be Ready", 600)
        seconds = time.monotonic() - began
        memory = psutil.Process(process.process.pid).memory_info().rss >> 20
        print(f"\n{COUNT} Ready after {seconds:.0f} s, {memory} MiB")
        print({k: v for k, v in process.metrics().items() if "reconcile_total" in k})
        versions = lambda: {  # noqa: E731
            i["metadata"]["uid"]: i["metadata"]["resourceVersion"]
            for path in (cluster.path, *CHILDREN, RAYS)
            for i in cluster.items(path)
        }
        until(lambda: settled(versions), "quiet")


def settled(versions):
    """Whether nothing is written for two seconds."""
    before = versions()
    time.sleep(2)
    return versions() == before


def is_ready(hybrid):
    conditions = hybrid.get("status", {}).get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
