"""The cut moves by what a pool's ledger says: the real ledger, over HTTP, behind its token.

The ledger runs without Ray: it is the same object with the same routes that Serve would run, and
windows are pushed into it as replicas push them.
"""

import hashlib
import itertools
import threading
import time
from base64 import b64decode

import httpx2
import pytest
import uvicorn
from tests.kube.apiserver import _free_ports
from tests.kube.controllers import finish
from tests.kube.operators import NAMESPACE, configuration, operator, until
from tests.kube.test_rollout import Rollout, short

from dovetail.ladder import Parts
from dovetail.measure import Link, Sample, Window
from dovetail.pool import LEDGER_APPLICATION
from dovetail_serving.ledger import Ledger, LedgerArgs

pytestmark = pytest.mark.kube


@pytest.fixture
def moving(rays, registry, tmp_path):
    """An operator, and a ledger that asks for the operator's token, at the pool's address."""
    (port,) = _free_ports(1)
    url = f"http://127.0.0.1:{port}"
    with operator(rays, tmp_path, configuration(registry, poolUrl=url)) as process:
        until(lambda: process.probe("/readyz") == 200, "readiness")
        path = f"/api/v1/namespaces/{NAMESPACE}/secrets"
        (secret,) = until(lambda: rays.request("GET", path)["items"], "the operator's token")
        token = b64decode(secret["data"]["token"]).decode()
        digest = hashlib.sha256(token.encode()).hexdigest()
        ledger = Ledger(LedgerArgs())
        ledger.reconfigure({"operator_token": digest})
        with Serving(ledger, port):
            yield ledger, url


class Serving:
    """The ledger's routes at the path that Serve would give them."""

    def __init__(self, ledger, port):
        from starlette.applications import Starlette
        from starlette.routing import Mount

        routes = [Mount(f"/{LEDGER_APPLICATION}", ledger.__serve_build_asgi_app__())]
        config = uvicorn.Config(Starlette(routes=routes), port=port, log_level="error")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)

    def __enter__(self):
        self.thread.start()
        until(lambda: self.server.started, "the ledger")

    def __exit__(self, *exc):
        self.server.should_exit = True
        self.thread.join()


def push(ledger, deployment, number, link, *, edge, rung="edge"):
    """A replica's push: ten requests on a rung, and the link their device saw."""
    window = Window()
    for _ in range(10):
        window.add(Sample(rung, Parts(head=edge), edge, "ok"))
    window.add_link(link)
    ledger.push(
        {
            "replica": "r",
            "deployment": deployment,
            "version": "v",
            "number": number,
            "windows": {"camera": window.dump()},
            "contacts": {"camera": time.time()},
            "devices": {"camera": {"camera-1": time.time()}},
            "counts": {},
        }
    )


def test_a_slow_device_on_a_good_link_moves_to_the_cloud_and_the_story_is_told(
    moving, cluster, made
):
    """Verify a move from samples to plan, pool, status and Event, all of one generation."""
    ledger, _ = moving
    cluster.create(adapt={"window": "1s", "cooldown": "1s"})
    cluster.ready(made)
    assert cluster.get()["status"]["classes"][0]["rung"] == "edge"

    numbers = iter(range(1, 10_000))

    def moved():
        push(
            ledger,
            f"{cluster.namespace}/page",
            next(numbers),
            Link(rtt=0.001, seconds_per_byte=1e-9),
            edge=0.6,  # two hundred times what the profile says
        )
        one = cluster.get()["status"]["classes"][0]
        return one if one["moves"] else None

    one = until(moved, "a move")
    cluster.wait("Moving", "Measuring")
    move = one["moves"][-1]
    assert move["source"] == "edge"
    assert move["target"] == one["rung"] != "edge"
    assert move["reason"] == "Faster"

    def published():
        apps = cluster.serve_config()["applications"]
        mine = next(a for a in apps if a["name"].startswith(cluster.namespace))
        plan = mine["deployments"][0]["user_config"]["plans"]["camera"]
        return plan if plan["default"] == move["target"] else None

    plan = until(published, "the plan in the pool")
    assert plan["generation"] >= one["planGeneration"] > 1
    events = f"/apis/events.k8s.io/v1/namespaces/{cluster.namespace}/events"
    until(lambda: [e for e in cluster.items(events) if e["reason"] == "Moved"], "an Event")


def test_only_the_operators_token_reads_windows(moving):
    """Verify that the ledger refuses whoever has no token or another."""
    _, url = moving
    path = f"{url}/{LEDGER_APPLICATION}/v1/windows"

    assert httpx2.get(path).status_code == 401
    assert httpx2.get(path, headers={"Authorization": "Bearer x"}).status_code == 401


def meet(ledger, deployment, number, version, device_class, *, ago=0.0):
    """A replica's push: a device was heard on a version, and asked for nothing else."""
    ledger.push(
        {
            "replica": version,
            "deployment": deployment,
            "version": version,
            "number": number,
            "windows": {},
            "contacts": {},
            "devices": {device_class: {"device-1": time.time() - ago}},
            "counts": {},
        }
    )


@pytest.fixture
def busy(moving, cluster):
    """Requests at the pool: the operator reads the ledger once a window, and never more rarely."""
    ledger, _ = moving
    stop = threading.Event()

    def ask():
        for number in itertools.count(1):
            push(ledger, "others/busy", number, Link(0.001, 1e-9), edge=0.001)
            if stop.wait(0.3):
                return

    thread = threading.Thread(target=ask)
    thread.start()
    yield
    stop.set()
    thread.join()


@pytest.mark.usefixtures("busy")
def test_an_old_version_stays_while_a_device_reports_it_and_leaves_then(
    moving, cluster, made, second
):
    """Verify retention by what the real ledger says of devices."""
    ledger, _ = moving
    cluster.create(rollout={"retain": "4s"}, adapt={"window": "1s"})
    cluster.ready(made)
    rollout = Rollout(cluster)
    rollout.to(second)
    rollout.both(second)
    rollout.say(second)
    until(lambda: rollout.live() == second["bundle"], "the new version to be live")

    end, number = time.monotonic() + 8, 0
    while time.monotonic() < end:
        number += 1
        meet(ledger, f"{cluster.namespace}/page", number, short(made), "camera")
        time.sleep(0.5)
    assert set(rollout.applications()) == {short(made), short(second)}

    until(lambda: set(rollout.applications()) == {short(second)}, "the old version gone", 90)
    assert rollout.states()[made["bundle"]] == "Kept"


def group(moving, cluster, made):
    """A deployment for a group of devices none of which has joined; returns its ledger."""
    ledger, url = moving
    phone = {"name": "phone", "deviceGroup": "phones"}
    cluster.create(edge={"classes": [phone]}, cloud={"endpoint": url}, adapt={"window": "1s"})
    finish(cluster.server, cluster.job(), made)
    cluster.wait("EdgeAvailable", "NoDeviceJoined")
    return ledger


@pytest.mark.usefixtures("busy")
def test_a_device_outside_the_cluster_counts_once_it_was_heard_of(moving, cluster, made):
    """Verify that a group has devices by what the ledger says, and that status counts them."""
    ledger = group(moving, cluster, made)
    meet(ledger, f"{cluster.namespace}/page", 1, short(made), "phone")
    cluster.serving()

    cluster.wait("EdgeAvailable", "EdgesReady")
    cluster.wait("Ready", "Ready")
    devices = cluster.get()["status"]["classes"][0]["devices"]
    assert (devices["known"], devices["connected"]) == (1, 1)
    assert devices["lastContact"]
    message = cluster.condition("EdgeAvailable")["message"]
    assert message == "1 of 1 devices of class phone are connected."


@pytest.mark.usefixtures("busy")
def test_a_group_that_fell_silent_and_a_model_that_nobody_asks_are_told(moving, cluster, made):
    """Verify both reasons by what the ledger says, and that one device heard of is enough."""
    ledger = group(moving, cluster, made)
    meet(ledger, f"{cluster.namespace}/page", 1, short(made), "phone", ago=120)
    cluster.serving()

    assert "'phones'" in cluster.wait("EdgeAvailable", "DevicesSilent")["message"]
    assert cluster.wait("Ready", "DevicesSilent")["status"] == "False"
    assert cluster.wait("Moving", "NoRequests")["status"] == "False"

    meet(ledger, f"{cluster.namespace}/page", 2, short(made), "phone")
    cluster.wait("EdgeAvailable", "EdgesReady")
