import pytest
import yaml
from tests.kube.apiserver import running
from tests.kube.binaries import find

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
