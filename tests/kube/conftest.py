from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from tests.kube.apiserver import ApiServer, running
from tests.kube.binaries import find
from tests.kube.cluster import Cluster
from tests.kube.definitions import definitions
from tests.kube.kuberay import ray_service_definition
from tests.kube.operators import NAMESPACE, configuration, operator, prepared, until
from tests.kube.registry import push, running_registry
from tests.tiny_bundle import write_tiny_bundle

from dovetail.crd import render
from dovetail.errors import MissingTool


@pytest.fixture(scope="session")
def apiserver(tmp_path_factory, request):
    """A real API server; the tests that need it are skipped, with what to do, where none is."""
    try:
        etcd, program = find("etcd"), find("kube-apiserver")
    except MissingTool as error:
        pytest.skip(str(error))
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\nAPI server: {program}; etcd: {etcd}")
    with running(tmp_path_factory.mktemp("kube"), etcd, program) as server:
        yield server


@pytest.fixture(scope="session")
def hybrid(apiserver):
    """The API server with `HybridDeployment` defined."""
    apiserver.define(yaml.safe_load(render()))
    return apiserver


@pytest.fixture(scope="session")
def registry(tmp_path_factory):
    """A real OCI registry; skipped, with what to do, where there is none."""
    folder = tmp_path_factory.mktemp("registry")
    try:
        with running_registry(folder) as url:
            yield url
    except MissingTool as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def made(registry, tmp_path_factory):
    """A bundle in the registry: what a partition Job says when it ends, and the bundle."""
    tiny = write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")
    digest, costs = push(registry, tiny.bundle, tiny.costs)
    return {"bundle": digest, "costs": costs}


@pytest.fixture(scope="session")
def second(registry, tmp_path_factory):
    """Another version in the registry, as its partition Job says it."""
    tiny = write_tiny_bundle(tmp_path_factory.mktemp("second") / "tiny", seed=1)
    digest, costs = push(registry, tiny.bundle, tiny.costs)
    return {"bundle": digest, "costs": costs}


@pytest.fixture(scope="session")
def rays(tmp_path_factory):
    """An API server of its own with `HybridDeployment` and KubeRay's `RayService` defined."""
    with prepared(tmp_path_factory.mktemp("rays")) as server:
        yield server


@pytest.fixture(scope="module")
def decided():
    """What the chart decides for the operator of a module, beside what it always does."""
    return {}


@pytest.fixture(scope="module")
def running_operator(rays, registry, tmp_path_factory, decided):
    """One operator for all tests of a module that need no other."""
    folder = tmp_path_factory.mktemp("operator")
    with operator(rays, folder, configuration(registry, **decided)) as process:
        until(lambda: process.probe("/readyz") == 200, "readiness")
        yield process


@dataclass(frozen=True, slots=True)
class Charted:
    """An API server on which the chart is installed.

    Attributes:
        server: the API server, which knows every kind that the chart can make.
        audit: what the operator's account asked, a JSON object a line.
    """

    server: ApiServer
    audit: Path


@pytest.fixture(scope="session")
def charted(tmp_path_factory):
    """An API server that knows every kind of the chart and keeps account of what is asked."""
    folder = tmp_path_factory.mktemp("charted")
    account = f"system:serviceaccount:{NAMESPACE}:dovetail-operator"
    policy = {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [{"level": "Metadata", "users": [account]}, {"level": "None"}],
    }
    (folder / "policy.yaml").write_text(yaml.safe_dump(policy))
    try:
        etcd, program = find("etcd"), find("kube-apiserver")
        defined = [yaml.safe_load(ray_service_definition().read_text()), *definitions()]
    except MissingTool as error:
        pytest.skip(str(error))
    flags = (
        f"--audit-policy-file={folder / 'policy.yaml'}",
        f"--audit-log-path={folder / 'audit.log'}",
        "--enable-admission-plugins=OwnerReferencesPermissionEnforcement",
    )
    with running(folder, etcd, program, *flags) as server:
        for definition in defined:
            server.define(definition)
        marks = {"pod-security.kubernetes.io/enforce": "restricted"}
        body = {"apiVersion": "v1", "kind": "Namespace"}
        body["metadata"] = {"name": NAMESPACE, "labels": marks}
        server.request("POST", "/api/v1/namespaces", body)
        yield Charted(server, folder / "audit.log")


@pytest.fixture
def cluster(rays, request):
    """A namespace, a node with a camera's label, and at the end no deployment left."""
    digits = f"{abs(hash(request.node.name)) % 10**8}"
    cluster = Cluster(rays, f"t{digits}")
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"n{digits}"}}
    node["metadata"]["labels"] = {"kind": "camera"}
    rays.request("POST", "/api/v1/nodes", node)
    yield cluster
    rays.request("DELETE", cluster.path)
    rays.request("DELETE", f"/api/v1/nodes/n{digits}")
