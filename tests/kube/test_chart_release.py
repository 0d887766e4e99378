"""A release's life on a real API server: installed, upgraded, with its own rights only, gone."""

import contextlib
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from tests.kube.apiserver import Refused, _kubeconfig
from tests.kube.cluster import CAMERA, Cluster
from tests.kube.controllers import JOBS, finish
from tests.kube.helm import CHART, REGISTRY, HelmFailed, found_helm, one
from tests.kube.operators import NAMESPACE, operator, until

from dovetail_operator.names import child_name
from dovetail_operator.process import LEASE

pytestmark = pytest.mark.kube

DEFINITION = (
    "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/hybriddeployments.dovetail.dev"
)
SECRETS = f"/api/v1/namespaces/{NAMESPACE}/secrets"
OTHER = "https://models.example/other.onnx"
# What one life does not show: admission asks whether an owner may be set; an Event is patched where
# the same happens again within minutes; the oldest of many versions are deleted, and one is read
# when it is gone back to; every kind of child is deleted where it is no longer wanted.
UNSEEN = {
    ("dovetail.dev", "hybriddeployments/finalizers", "update"),
    ("events.k8s.io", "events", "patch"),
    ("apps", "controllerrevisions", "delete"),
    ("apps", "controllerrevisions", "get"),
    ("", "configmaps", "delete"),
    ("", "serviceaccounts", "delete"),
}
RELEASED = "dovetail-release"


class Right(NamedTuple):
    """A right as it is given or needed.

    Attributes:
        space: the namespace in which it holds; empty for the whole cluster.
        what: group, resource and verb.
        name: the object it is on; empty for any.
    """

    space: str
    what: tuple[str, str, str]
    name: str = ""


@pytest.fixture
def helm(tmp_path):
    return found_helm(tmp_path)


@pytest.fixture
def server(charted, helm):
    """The API server that knows everything of the chart, and no release on it before or after."""
    yield charted.server
    sweep(charted.server, helm)


def sweep(server, helm):
    """Take away the release and what its operator made; nobody collects garbage here."""
    with contextlib.suppress(HelmFailed):
        helm.on(server, "uninstall")
    with contextlib.suppress(Refused):
        server.request("DELETE", DEFINITION)
    until(lambda: not defined(server), "the definition to be gone")
    for path in (
        f"/apis/ray.io/v1/namespaces/{NAMESPACE}/rayservices",
        f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases",
        f"/api/v1/namespaces/{NAMESPACE}/configmaps",
        SECRETS,
    ):
        server.request("DELETE", path)


def defined(server):
    """The definition, if there is one."""
    try:
        return server.request("GET", DEFINITION)
    except Refused:
        return None


@pytest.fixture
def as_operator(server, tmp_path):
    """The same server for who has the operator's rights."""

    def become():
        path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/dovetail-operator/token"
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest"}
        token = server.request("POST", path, body | {"spec": {"expirationSeconds": 3600}})
        home = tmp_path / "account"
        home.mkdir()
        text = token["status"]["token"]
        file = _kubeconfig(home, server.url, text, server.certificate)
        (home / "token").write_text(text)
        (home / "ca.crt").write_bytes(server.certificate.read_bytes())
        return dataclasses.replace(server, kubeconfig=file)

    return become


def configured(server, registry, tmp_path):
    """What the release tells its operator, but for what only a network of pods has."""
    path = f"/api/v1/namespaces/{NAMESPACE}/configmaps/dovetail-config"
    config = yaml.safe_load(server.request("GET", path)["data"]["config.yaml"])
    authority = tmp_path / "ca.crt"
    authority.write_text("authority")
    return config | {
        "registry": {"url": registry},
        "poolUrl": "http://127.0.0.1:9",
        "endpointCa": str(authority),
    }


def asked(text):
    """What the operator asked for, each as a right on that very object, and what was refused."""
    seen, refused = set(), []
    for line in map(json.loads, text.splitlines()):
        if line.get("responseStatus", {}).get("code") == 403:
            refused.append((line["verb"], line["requestURI"], line["responseStatus"]))
        about = line.get("objectRef")
        if about is None:
            continue  # what the API server has, which everybody may ask
        resource = "/".join(filter(None, (about["resource"], about.get("subresource"))))
        group, space = about.get("apiGroup", ""), about.get("namespace", "")
        name = about.get("name", "")
        seen.add(Right(space, (group, resource, line["verb"]), name))
        if line["verb"] == "patch" and line["responseStatus"]["code"] == 201:
            seen.add(Right(space, (group, resource, "create"), name))  # applied where none was
    return seen, refused


def granted(objects):
    """What the chart's rules let the operator do, and where."""
    return {
        Right(item["metadata"].get("namespace", ""), (group, resource, verb), name)
        for item in objects
        if item["kind"] in ("Role", "ClusterRole") and "-operator" in item["metadata"]["name"]
        for rule in item["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", [""])
    }


def needed(seen, deployments, everywhere, own):
    """The narrowest rights under which all of that may be asked.

    Args:
        seen: what was asked for.
        deployments: the namespace of the deployments.
        everywhere: whether the chart cannot know that namespace.
        own: names of objects that the chart knows.
    """
    narrow = {
        Right(
            "" if everywhere and right.space == deployments else right.space,
            right.what,
            right.name if right.name in own and right.what[2] != "create" else "",
        )
        for right in seen
    }
    anywhere = {right.what for right in narrow if not right.space and not right.name}
    return {right for right in narrow if not right.space or right.what not in anywhere}


def live_through(cluster, made, second):
    """Everything that a deployment can live through: made, moved on, dedicated, gone."""
    server = cluster.server
    marks = {"name": f"n-{cluster.namespace}", "labels": {"kind": "camera"}}
    server.request("POST", "/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": marks})
    phones = {"name": "phone", "deviceGroup": "phones"}
    cluster.create()
    cluster.ready(made)
    cluster.patch(edge={"classes": [CAMERA, phones]})
    secrets = "/api/v1/namespaces/{}/secrets"
    until(
        lambda: [s for s in cluster.items(secrets) if "endpoint" in s.get("data", {})],
        "where phones join",
    )
    before = {job["metadata"]["uid"] for job in cluster.items(JOBS)}
    cluster.patch(model={"uri": OTHER})
    (job,) = until(
        lambda: [j for j in cluster.items(JOBS) if j["metadata"]["uid"] not in before],
        "another Job",
    )
    finish(server, job, second)
    revisions = "/apis/apps/v1/namespaces/{}/controllerrevisions"
    until(lambda: cluster.items(revisions), "a version to be kept")
    cluster.patch(cloud={"pool": "Dedicated"})
    own = f"/apis/ray.io/v1/namespaces/{cluster.namespace}/rayservices"
    until(lambda: cluster.items(own), "a pool of its own")
    cluster.patch(cloud={"pool": "default"}, edge={"classes": [phones]})
    until(lambda: not cluster.items(own), "the pool of its own to go")
    sets = "/apis/apps/v1/namespaces/{}/daemonsets"
    until(lambda: not cluster.items(sets), "the camera to go")


@pytest.mark.parametrize("alone", [False, True], ids=["every namespace", "one namespace"])
def test_the_operator_may_do_what_it_does_and_no_more(  # noqa: PLR0917  all of them fixtures
    helm, server, charted, as_operator, registry, made, second, tmp_path, alone
):
    """Verify by the API server's own account that nothing is refused, and that no right is unused,
    wider than one namespace or on more than one object where a narrower would do.
    """
    cluster = Cluster(server, "vision-alone" if alone else "vision")
    before = charted.audit.stat().st_size
    values = {"gateway": {"externalUrl": "https://devices.example:8443"}}
    if alone:
        values["watchNamespace"] = cluster.namespace
    helm.on(server, "install", "--create-namespace", **values)
    config = configured(server, registry, tmp_path)
    flags = [f"--watch-namespace={cluster.namespace}"] if alone else []

    with operator(as_operator(), tmp_path, config, *flags) as process:
        until(lambda: process.probe("/readyz") == 200, "readiness")
        live_through(cluster, made, second)
        process.process.terminate()  # which gives the Lease back
        process.process.wait(30)

    seen, refused = asked(charted.audit.read_bytes()[before:].decode())
    assert not refused
    token = child_name(RELEASED, "token", "ledger")
    found = needed(seen, cluster.namespace, not alone, {LEASE, RELEASED, token})
    found |= {Right(cluster.namespace if alone else "", what) for what in UNSEEN}
    found.add(Right(NAMESPACE, ("", "configmaps/finalizers", "update"), RELEASED))
    rights = granted(helm.template(**values))
    assert found - rights == set()
    assert rights - found == set()


def test_what_the_operator_has_no_right_to_is_refused(server, helm, as_operator):
    """Verify that its rights end where they should: other people's Secrets, other Leases."""
    helm.on(server, "install", "--create-namespace", watchNamespace="default")
    token = Path(as_operator().kubeconfig.parent / "token").read_text()
    headers = {"Authorization": f"Bearer {token}"}
    for path in (
        "/api/v1/secrets",
        f"{SECRETS}/dovetail-gateway-tls",
        f"{SECRETS}/dovetail-gateway-ca",
        "/api/v1/namespaces/kube-system/secrets",
        "/apis/coordination.k8s.io/v1/namespaces/dovetail-system/leases/other",
        "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    ):
        with pytest.raises(Refused, match="403"):
            server.request("GET", path, headers=headers)


def test_an_upgrade_keeps_the_authority_and_makes_a_certificate_only_for_new_names(helm, server):
    def held(name):
        return server.request("GET", f"{SECRETS}/dovetail-gateway-{name}")["data"]

    helm.on(server, "install", "--create-namespace")
    authority, certificate = held("ca"), held("tls")
    assert certificate["ca.crt"] == authority["tls.crt"]

    helm.on(server, "upgrade", cache="/elsewhere")
    assert (held("ca"), held("tls")) == (authority, certificate)

    helm.on(server, "upgrade", gateway={"externalUrl": "https://devices.example:8443"})
    assert held("ca") == authority
    renewed = held("tls")
    assert renewed["ca.crt"] == certificate["ca.crt"]
    assert renewed["tls.crt"] != certificate["tls.crt"]


def test_an_upgrade_brings_the_definition_along(helm, server):
    helm.on(server, "install", "--create-namespace")
    definition = server.request("GET", DEFINITION)
    body = {"metadata": {"labels": {"helm.sh/chart": "dovetail-0.0.1"}}}
    headers = {"Content-Type": "application/merge-patch+json"}
    server.request("PATCH", DEFINITION, body, headers=headers)
    chart = definition["metadata"]["labels"]["helm.sh/chart"]

    helm.on(server, "upgrade")
    found = server.request("GET", DEFINITION)
    assert found["metadata"]["labels"]["helm.sh/chart"] == chart


@pytest.mark.parametrize("keep", [True, False])
def test_after_it_is_uninstalled_only_a_definition_that_is_kept_is_left(helm, server, keep):
    """Verify it over every resource that the API server lists."""
    before = everything(server)
    helm.on(server, "install", "--create-namespace", crds={"keep": keep})
    page = {
        "apiVersion": "dovetail.dev/v1alpha1",
        "kind": "HybridDeployment",
        "metadata": {"name": "page"},
        "spec": {"model": {"uri": OTHER}},
    }
    path = "/apis/dovetail.dev/v1alpha1/namespaces/default/hybriddeployments"
    until(lambda: server.request("POST", path, page), "the definition to be served")

    helm.on(server, "uninstall")
    left = {
        name
        for kind, name in until_steady(server) - before
        if kind not in ("namespaces", "apiservices")
    }
    assert left == ({"hybriddeployments.dovetail.dev", "page"} if keep else set())


def test_a_kept_definition_is_taken_up_again_and_given_to_another_release(helm, server):
    """Verify the page's way to install under another name where a definition was kept."""
    helm.on(server, "install", "--create-namespace")
    helm.on(server, "uninstall")
    assert defined(server)
    helm.on(server, "install")
    helm.on(server, "uninstall")

    there = [f"--kubeconfig={server.kubeconfig}", f"--namespace={NAMESPACE}"]
    with pytest.raises(HelmFailed, match="invalid ownership metadata"):
        helm.run("install", "other", str(CHART), *there, values=REGISTRY)
    marks = {"meta.helm.sh/release-name": "other", "meta.helm.sh/release-namespace": NAMESPACE}
    body = {"metadata": {"annotations": marks}}
    headers = {"Content-Type": "application/merge-patch+json"}
    server.request("PATCH", DEFINITION, body, headers=headers)
    helm.run("install", "other", str(CHART), *there, values=REGISTRY)
    helm.run("uninstall", "other", *there)


def until_steady(server):
    """Everything, once a definition that is deleted is gone with its resources."""

    def settled():
        definition = defined(server)
        return definition is None or "deletionTimestamp" not in definition["metadata"]

    until(settled, "the definition to be gone")
    return everything(server)


def everything(server):
    """(resource, name) of all that there is, but for what a server makes by itself."""
    groups = server.request("GET", "/apis")["groups"]
    roots = ["/api/v1", *(f"/apis/{g['preferredVersion']['groupVersion']}" for g in groups)]
    found = set()
    for root in roots:
        for kind in server.request("GET", root)["resources"]:
            if "/" in kind["name"] or "list" not in kind["verbs"]:
                continue
            if kind["name"] in ("events", "leases", "endpointslices", "endpoints", "ipaddresses"):
                continue
            # a kind whose definition has just changed is not served for a moment
            path = f"{root}/{kind['name']}"
            for item in until(lambda path=path: [server.request("GET", path)], path)[0]["items"]:
                if item["metadata"]["name"] != "kube-root-ca.crt":
                    found.add((kind["name"], item["metadata"]["name"]))
    return found


def test_helm_test_says_what_is_there_and_fails_where_it_is_not(
    helm, server, as_operator, registry, tmp_path
):
    """Verify the very program of the test's pod, with the account that such a pod is given."""
    helm.on(server, "install", "--create-namespace")
    pod = one(helm.template(), "Pod", "dovetail-test")
    program = pod["spec"]["containers"][0]["command"][-1]
    account = as_operator()
    host, port = server.url.removeprefix("https://").split(":")
    env = {
        "KUBERNETES_SERVICE_HOST": host,
        "KUBERNETES_SERVICE_PORT": port,
        "ACCOUNT": str(account.kubeconfig.parent),
    }

    def check(url):
        command = [sys.executable, "-c", program, url]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    assert program.strip() == (CHART / "files" / "check.py").read_text().strip()
    config = configured(server, registry, tmp_path)
    with operator(account, tmp_path, config) as process:
        until(lambda: process.probe("/readyz") == 200, "readiness")
        done = check(f"http://127.0.0.1:{process.port}")
        assert done.stdout.splitlines() == [
            "the API serves HybridDeployments",
            "the operator is ready",
        ], done.stderr
    done = check(f"http://127.0.0.1:{process.port}")
    assert done.returncode != 0
    assert "refused" in done.stderr
