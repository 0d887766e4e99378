"""Who may write: two operator processes, one Lease, and a leader that is killed or paused."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.kube.cluster import CHILDREN, RAYS
from tests.kube.controllers import JOBS
from tests.kube.operators import NAMESPACE, configuration, operator, until

from dovetail_operator.client import Api, connect
from dovetail_operator.lease import Lease, Terms

pytestmark = pytest.mark.kube

LEASES = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/dovetail-operator"
SHORT = "--lease-seconds=3"


def holder(server):
    return server.request("GET", LEASES)["spec"]["holderIdentity"]


def identity(process):
    return next(line["lease"] for line in process.said() if "lease" in line)


@pytest.fixture
def two(rays, registry, tmp_path):
    """Two operators, the first of which leads."""
    config = configuration(registry)
    with operator(rays, tmp_path, config, SHORT) as leader:
        until(lambda: holder(rays) == identity(leader), "the first to lead")
        with operator(rays, tmp_path, config, SHORT) as standby:
            until(lambda: standby.probe("/readyz") == 200, "the second to be ready")
            yield leader, standby


def test_a_standby_is_ready_and_writes_nothing_until_the_leader_is_killed(two, cluster):
    """Verify that one leads, and that the other takes over what it left."""
    leader, standby = two
    cluster.create("first")
    until(lambda: cluster.items(JOBS), "the leader's Job")
    assert standby.metrics()["dovetail_operator_leader"] == 0
    assert not [key for key in standby.metrics() if "reconcile_total" in key]

    leader.process.kill()
    cluster.create("second")

    until(lambda: len(cluster.items(JOBS)) == 2, "the standby's Job")
    assert holder(cluster.server) == identity(standby)


def test_the_lease_goes_with_the_release(two, rays):
    """Verify that `helm uninstall` takes along what a chart cannot: the Lease of its operator."""
    path = f"/api/v1/namespaces/{NAMESPACE}/configmaps/dovetail-release"
    (owner,) = rays.request("GET", LEASES)["metadata"]["ownerReferences"]
    assert owner["uid"] == rays.request("GET", path)["metadata"]["uid"]


def test_a_leader_that_is_told_to_end_hands_the_lease_over(two, cluster):
    """Verify that SIGTERM ends with exit code 0 and the Lease given up, not left to run out."""
    leader, standby = two
    leader.process.terminate()

    assert leader.process.wait(30) == 0
    until(lambda: holder(cluster.server) == identity(standby), "the standby to lead")
    assert not [line for line in leader.said() if line["level"] == "error"]


def test_a_leader_paused_past_its_lease_writes_nothing_when_it_wakes(two, cluster, made):
    """Verify that a woken leader ends, and that no object is other than its successor left it."""
    leader, standby = two
    cluster.create()
    cluster.ready(made)

    for index in range(20):  # it sleeps in the midst of work
        cluster.create(f"many{index}")
    os.kill(leader.process.pid, signal.SIGSTOP)
    try:
        until(lambda: holder(cluster.server) == identity(standby), "the standby to lead")
        # Work that the sleeper will see the moment it wakes, and that its successor does first.
        cluster.patch(adapt={"mode": "Manual"}, split={"rung": "cut1-int8"})
        cluster.wait("Moving", "Pinned")
        until(
            lambda: "cut1-int8" in str(cluster.serve_config()["applications"][0]["deployments"]),
            "the plan in the pool",
        )
        until(lambda: len(cluster.items(JOBS)) == 21, "every Job")
        before = until(lambda: settled(cluster), "the successor to be done")
    finally:
        os.kill(leader.process.pid, signal.SIGCONT)

    assert leader.process.wait(30) == 1
    assert everything(cluster) == before
    assert holder(cluster.server) == identity(standby)


def test_a_leader_whose_renewal_is_stuck_leads_no_more_once_its_deadline_has_passed(two, cluster):
    """Verify it while the API server hangs, which answers nothing and refuses nothing."""
    leader, standby = two
    os.kill(cluster.server.apiserver.process.pid, signal.SIGSTOP)
    try:
        until(lambda: leader.metrics()["dovetail_operator_leader"] == 0, "the deadline to pass")
    finally:
        os.kill(cluster.server.apiserver.process.pid, signal.SIGCONT)

    assert leader.process.wait(60) == 1
    until(lambda: holder(cluster.server) == identity(standby), "the standby to lead")
    cluster.create()
    until(lambda: cluster.items(JOBS), "the standby's Job")


def test_a_deadline_that_passed_during_a_renewal_stays_passed(rays):
    """Verify that a renewal answered too late does not let its holder lead again.

    It was sent after the last one that succeeded, so a deadline counted from it may lie ahead
    still: enough for a holder that looks only after the answer to never see that it was late.
    """
    path = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"
    lease = Lease(
        Api(connect(str(rays.kubeconfig))), path, "late", "me", Terms(duration=9, renew=2, retry=1)
    )
    began = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        kept = pool.submit(lease.run, began.set)
        try:
            assert began.wait(30)
            os.kill(rays.apiserver.process.pid, signal.SIGSTOP)
            try:
                until(lambda: not lease.held, "the deadline to pass")
            finally:
                os.kill(rays.apiserver.process.pid, signal.SIGCONT)

            assert kept.result(30) is False
            assert not lease.held
        finally:
            lease.stop()


def settled(cluster):
    """Every version, once nothing has been written for a while."""
    before = everything(cluster)
    time.sleep(1.5)
    return before if everything(cluster) == before else None


def everything(cluster):
    """Version of every object that an operator could have written."""
    found = [*cluster.children(), *cluster.items(cluster.path), *cluster.items(RAYS)]
    assert len(CHILDREN) < len(found)
    return {item["metadata"]["uid"]: item["metadata"]["resourceVersion"] for item in found}
