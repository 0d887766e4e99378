"""Pools where something is in the way: KubeRay comes later, nobody is left, nobody may write."""

import json

import pytest
import yaml
from tests.kube.cluster import RAYS, Cluster
from tests.kube.controllers import finish, merge
from tests.kube.kuberay import ray_service_definition
from tests.kube.operators import configuration, operator, prepared, until

from dovetail.pool import LEDGER_APPLICATION
from dovetail_operator.names import TOKEN_HASH, child_name

pytestmark = pytest.mark.kube

POOLS = [
    {"name": "default"},
    {"name": "odd", "rayCluster": {"headGroupSpec": "of another release"}},
]
SECRETS = "/api/v1/namespaces/{}/secrets"


@pytest.fixture(scope="module")
def decided():
    return {"pools": POOLS}


def names(config):
    return [item["name"] for item in config["applications"]]


def test_kuberay_that_comes_later_is_noticed(registry, made, tmp_path):
    """Verify that who does what the condition says needs to do nothing else."""
    (tmp_path / "server").mkdir()
    with prepared(tmp_path / "server", rays=False) as server:
        cluster = Cluster(server, "early")
        with operator(server, tmp_path, configuration(registry)):
            cluster.create()
            finish(server, cluster.job(), made)
            cluster.wait("TailAvailable", "KubeRayMissing")

            server.define(yaml.safe_load(ray_service_definition().read_text()))

            cluster.wait("TailAvailable", "TailDeploying")
            until(lambda: len(names(cluster.serve_config())) == 2, "the tail in a pool")


def test_a_tail_leaves_a_pool_in_which_nobody_else_has_one_yet(running_operator, cluster, made):
    """Verify that neither tail nor tokens outlive a deployment for as long as another has none."""
    cluster.create()
    finish(cluster.server, cluster.job(), made)
    until(lambda: len(names(cluster.serve_config())) == 2, "the tail")
    (secret,) = cluster.items(SECRETS)
    digest = secret["metadata"]["annotations"][TOKEN_HASH]
    assert digest in json.dumps(cluster.serve_config())
    cluster.create("waits")
    until(lambda: cluster.condition("Partitioned", "waits"), "the other to be seen")

    cluster.delete()

    until(lambda: names(cluster.serve_config()) == [LEDGER_APPLICATION], "the ledger alone")
    assert digest not in json.dumps(cluster.serve_config())


def test_a_first_tail_that_failed_leaves_its_own_pool(running_operator, cluster, made):
    """Verify that what cannot be deployed is taken out, so that the next try is one."""
    cluster.create(cloud={"pool": "Dedicated"})
    finish(cluster.server, cluster.job(), made)
    path = RAYS.rsplit("/", 2)[0] + f"/{cluster.namespace}/rayservices"
    (pool,) = until(lambda: cluster.items(path), "a pool of its own")
    until(lambda: len(served(cluster, path)) == 2, "the tail")
    (tail,) = [name for name in served(cluster, path) if name != LEDGER_APPLICATION]
    failed = {"applicationStatuses": {tail: {"status": "DEPLOY_FAILED", "message": "no memory"}}}

    def report():
        body = {"status": {"pendingServiceStatus": failed}}
        merge(cluster.server, f"{path}/{pool['metadata']['name']}/status", body)
        return cluster.condition("TailAvailable")["reason"] == "TailFailed"

    until(report, "the failure to be told")

    assert "no memory" in cluster.condition("TailAvailable")["message"]
    until(lambda: served(cluster, path) == [LEDGER_APPLICATION], "the ledger alone")


def served(cluster, path):
    (pool,) = cluster.items(path)
    return names(json.loads(pool["spec"]["serveConfigV2"]))


def test_a_pool_that_may_not_be_written_is_told_to_who_wants_to_live_in_it(
    running_operator, cluster, made
):
    """Verify that a refusal of the API server is a condition with its words, not a log line."""
    cluster.create(cloud={"pool": "odd"})
    finish(cluster.server, cluster.job(), made)

    condition = cluster.wait("TailAvailable", "PoolRefused")

    assert "headGroupSpec" in condition["message"]
    assert cluster.condition("Degraded")["reason"] == "PoolRefused"
    assert cluster.condition("Partitioned")["status"] == "True"


def test_a_secret_that_somebody_else_made_is_told_and_not_taken(running_operator, cluster, made):
    """Verify that a token's name that is taken is said, and that it goes on once it is free."""
    name = child_name("page", "token", "camera")
    path = SECRETS.format(cluster.namespace)
    theirs = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}}
    before = cluster.server.request("POST", path, theirs)
    cluster.create()
    finish(cluster.server, cluster.job(), made)

    condition = cluster.wait("Degraded", "NameTaken")

    assert name in condition["message"]
    assert cluster.server.request("GET", f"{path}/{name}") == before
    cluster.server.request("DELETE", f"{path}/{name}")
    cluster.wait("Degraded", "AsExpected")
    ours = cluster.server.request("GET", f"{path}/{name}")
    digest = ours["metadata"]["annotations"][TOKEN_HASH]
    until(lambda: digest in json.dumps(cluster.serve_config()), "its token in the pool")
