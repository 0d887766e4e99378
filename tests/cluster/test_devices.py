"""Apps reach the edge of their own node alone; devices outside the cluster join by a token."""

import base64
import json
import ssl
import subprocess
import sys
import time

import httpx2
import pytest
from tests.cluster import example
from tests.cluster.service import Service
from tests.cluster.traffic import edge_service, steady
from tests.edge_process import JOIN
from tests.kube.operators import until

from dovetail_cli.ray_pool import free_port

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(600),
    pytest.mark.usefixtures("hands"),
]

GROUP = "dovetail.dev/device-group=phones"
SECRETS = f"/api/v1/namespaces/{example.NAMESPACE}/secrets"
ASK = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=5).status)"


def secret(cluster):
    """What a person takes from the Secret of the group; nothing before all of it is there."""
    found = cluster.request("GET", SECRETS, params={"labelSelector": GROUP})["items"]
    data = {key: base64.b64decode(value) for key, value in found[0]["data"].items()}
    return data if {"token", "endpoint", "ca.crt"} <= set(data) else None


def phones(cluster):
    """What the status says of phones; `IndexError` before it does."""
    return [one for one in example.get(cluster)["status"]["classes"] if one["name"] == "phone"][0]  # noqa: RUF015


def ladder(cluster):
    """Ids of the rungs that the plan of phones allows."""
    path = f"/api/v1/namespaces/{example.NAMESPACE}/configmaps"
    plans = [one["data"] for one in cluster.request("GET", path)["items"]]
    (plan,) = [json.loads(one["plan.phone.json"]) for one in plans if "plan.phone.json" in one]
    return [rung["id"] for rung in plan["ladder"]]


def test_apps_reach_the_edge_of_their_own_node_and_no_other(cluster, deployed):
    """Verify `internalTrafficPolicy: Local`: a Service answers where its node has an edge."""
    service = edge_service(cluster, example.NAME)
    url = f"http://{service['spec']['clusterIP']}:8000/v2/health/ready"

    def ask(node):
        command = [*cluster.network.inside(node), sys.executable, "-c", ASK, url]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert service["spec"]["internalTrafficPolicy"] == "Local"
    assert ask("edge").stdout.strip() == "200"
    assert ask("cloud").returncode != 0


@pytest.fixture
def joined(cluster, deployed, tmp_path):
    """A process outside every node, which joined with what its group's Secret holds."""
    camera = example.get(cluster)["spec"]["edge"]["classes"][0]
    phone = {"name": "phone", "deviceGroup": "phones"}
    example.patch(cluster, {"edge": {"classes": [camera, phone]}})
    held = until(lambda: secret(cluster), "where phones join", 60)
    (tmp_path / "token").write_bytes(held["token"])
    (tmp_path / "ca.crt").write_bytes(held["ca.crt"])
    port = free_port()
    command = [sys.executable, *JOIN, held["endpoint"].decode(), f"--port={port}"]
    command += [f"--token-file={tmp_path / 'token'}", f"--ca-file={tmp_path / 'ca.crt'}"]
    process = Service([*command, f"--state={tmp_path / 'state'}"], tmp_path / "phone.log")
    process.start()
    try:
        yield port, held, tmp_path
    finally:
        process.stop()
        example.patch(cluster, {"edge": {"classes": [camera]}, "adapt": {"mode": "Auto"},
                                "split": {"rung": None}})  # fmt: skip


def test_a_device_outside_every_node_joins_serves_moves_and_is_revoked(
    cluster, joined, rows, answers
):
    """Verify a device's whole life with no more than an address, an authority and a token."""
    port, held, folder = joined
    until(lambda: phones(cluster)["devices"]["connected"] == 1, "the phone to be counted", 90)
    with steady(cluster, example.NAME, rows, address=f"127.0.0.1:{port}") as traffic:
        answers(traffic.more(8, 90))
        other = next(one for one in ladder(cluster) if one != "edge")
        for rung in ("edge", other):
            example.patch(cluster, {"adapt": {"mode": "Manual"}, "split": {"rung": rung}})
            until(lambda wanted=rung: traffic.all()[-1].get("rung") == wanted, f"rung {rung}", 60)

        known = phones(cluster)["devices"]["known"]
        url = f"{held['endpoint'].decode()}/dovetail-ledger/v1/placement"
        assert placement(url, held["token"], folder) == 200
        since = time.time()
        name = cluster.request("GET", SECRETS, params={"labelSelector": GROUP})["items"][0]
        cluster.request("DELETE", f"{SECRETS}/{name['metadata']['name']}")
        until(lambda: placement(url, held["token"], folder) == 401, "the token to be refused", 60)
        until(lambda: traffic.all(since)[-1].get("degraded"), "the device to be refused", 60)
        answers(traffic.all())
        until(lambda: phones(cluster)["devices"]["connected"] == 0, "the phone to be missed", 120)
        assert phones(cluster)["devices"]["known"] == known

        (folder / "token").write_bytes(until(lambda: secret(cluster), "a new token")["token"])
        until(lambda: phones(cluster)["devices"]["connected"] == 1, "the phone to be back", 90)
        assert traffic.failed() == []


def placement(url, token, folder):
    """Status of asking with a token where to begin."""
    headers = {"Authorization": f"Bearer {token.decode()}"}
    trust = ssl.create_default_context(cafile=folder / "ca.crt")
    return httpx2.get(url, headers=headers, verify=trust).status_code
