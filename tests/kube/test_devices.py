"""What device classes own: the Secret that a group joins with, and edges that are slowed down."""

import hashlib
from base64 import b64decode

import pytest
from tests.kube.cluster import CHILDREN
from tests.kube.controllers import finish, merge
from tests.kube.operators import NAMESPACE, until

pytestmark = pytest.mark.kube


@pytest.fixture(scope="module")
def decided(tmp_path_factory):
    """Where devices outside the cluster join, and whom they trust."""
    authority = tmp_path_factory.mktemp("devices") / "ca.crt"
    authority.write_text("PEM")
    return {
        "externalEndpoint": "https://out/{namespace}/{pool}",
        "endpointCa": str(authority),
    }


def test_a_group_of_devices_gets_a_secret_to_join_with_and_a_new_token_once_it_is_deleted(
    running_operator, cluster, made
):
    """Verify address, authority and token in one Secret, and that deleting it revokes the token."""
    path = f"/api/v1/namespaces/{cluster.namespace}/secrets"
    cluster.create(edge={"classes": [{"name": "phone", "deviceGroup": "phones"}]})
    finish(cluster.server, cluster.job(), made)

    def secret(but=""):
        found = [i for i in cluster.items(path) if i["metadata"]["uid"] != but]
        return found[0] if found and "endpoint" in found[0]["data"] else None

    def served():
        apps = cluster.serve_config()["applications"]
        mine = next(a for a in apps if a["name"].startswith(cluster.namespace))
        return mine["deployments"][0]["user_config"]["tokens"]["phone"]

    def digest(item):
        return hashlib.sha256(b64decode(item["data"]["token"])).hexdigest()

    first = until(secret, "a Secret with an address")
    assert b64decode(first["data"]["endpoint"]) == f"https://out/{NAMESPACE}/default".encode()
    assert b64decode(first["data"]["ca.crt"]) == b"PEM"
    assert first["metadata"]["labels"]["dovetail.dev/device-group"] == "phones"
    assert first["metadata"]["name"] in cluster.wait("EdgeAvailable", "NoDeviceJoined")["message"]
    assert not cluster.items(CHILDREN[-1])
    until(lambda: served() == digest(first), "the token in the pool")

    cluster.server.request("DELETE", f"{path}/{first['metadata']['name']}")
    second = until(lambda: secret(but=first["metadata"]["uid"]), "another Secret")
    assert digest(second) != digest(first)
    until(lambda: served() == digest(second), "the new token in the pool")


def test_a_slowdown_reaches_the_edges_and_one_that_is_no_factor_is_reported(
    running_operator, cluster, made
):
    """Verify the annotation, which is no part of the spec and raises no generation."""
    cluster.create()
    cluster.ready(made)

    def annotate(text):
        body = {"metadata": {"annotations": {"dovetail.dev/slowdown": text}}}
        merge(cluster.server, f"{cluster.path}/page", body)

    def arguments():
        (pods,) = cluster.items(CHILDREN[-1])
        return pods["spec"]["template"]["spec"]["containers"][0]["args"]

    annotate("30")
    until(lambda: "--slowdown=30" in arguments(), "the edges slowed down")
    annotate("fast")
    assert "fast" in cluster.wait("Degraded", "ManifestError")["message"]
    assert "--slowdown=30" in arguments()
