import os
import time
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
from tests.cluster import example, images, machine, release
from tests.cluster.existing import existing
from tests.cluster.harness import running
from tests.cluster.prerequisites import check
from tests.cluster.traffic import steady
from tests.kube.apiserver import Refused
from tests.kube.operators import until

KUBECONFIG = os.environ.get("KUBECONFIG")  # of a cluster to use in place of two nodes made here
SLOWDOWN = "30"  # the edge node is as a small board beside the cloud's


@contextmanager
def untouched(folder):
    """Holds this machine to being as it was before a cluster."""
    before = machine.state()
    yield
    assert machine.left(before, folder) == {}


class Stage:
    """A cluster with everything installed and the example applied, until it is left."""

    def __init__(self, folder):
        self._stack = ExitStack()
        if KUBECONFIG:
            self.cluster = self._stack.enter_context(existing(folder))
            return
        images.archives(check())  # what builds images has folders of its own
        self._stack.enter_context(untouched(folder))
        self.cluster = self._stack.enter_context(running(folder))

    def install(self):
        kuberay = release.has_kuberay(self.cluster)
        if not kuberay:
            release.install_kuberay(self.cluster)
        self.folder = example.publish(self.cluster)
        if not kuberay:
            release.available(self.cluster, release.KUBERAY, release.KUBERAY)
        # before anything of ours; a definition that was just made is not listed at once
        self.bare = until(lambda: release.everything(self.cluster), "all that there is")
        release.install(self.cluster)

    def leave(self):
        """End it all; a machine that had nodes made on it is as it was before."""
        self._stack.close()


@pytest.fixture(scope="session")
def hands():
    """Hands on the machine of the nodes; what needs them is skipped on a cluster of KUBECONFIG."""
    if KUBECONFIG:
        pytest.skip(
            "shapes links, kills processes or enters network namespaces, and KUBECONFIG names a "
            "cluster on whose nodes that cannot be done from here; unset it to have two made"
        )


@pytest.fixture(scope="session")
def stage(tmp_path_factory):
    """A cluster with KubeRay and the chart; what is left behind is told on failure only."""
    stage = Stage(tmp_path_factory.mktemp("cluster"))
    try:
        stage.install()
        yield stage
    finally:
        stage.leave()


@pytest.fixture(scope="session")
def cluster(stage):
    return stage.cluster


@pytest.fixture(scope="session")
def deployed(stage):
    """The example, Ready, on a slow device."""
    document = example.manifest()
    document["metadata"]["annotations"] = {"dovetail.dev/slowdown": SLOWDOWN}
    example.apply(stage.cluster, document)
    return example.ready(stage.cluster)


@pytest.fixture(scope="session")
def rows(stage):
    """File with the rows that are sent."""
    return stage.folder / "evaluation.npz"


@pytest.fixture(scope="session")
def whole(stage, rows):
    """The whole model's scores of every row."""
    import onnxruntime

    session = onnxruntime.InferenceSession(stage.folder / "model.onnx")
    inputs = np.load(rows)["x"]
    return np.concatenate([session.run(None, {"x": row[None]})[0] for row in inputs])


@pytest.fixture
def traffic(cluster, deployed, rows):
    """Steady requests from the edge node."""
    with steady(cluster, deployed["metadata"]["name"], rows) as driver:
        driver.more(4, 90)
        yield driver


@pytest.fixture
def answers(whole):
    """Holds requests to the whole model's answers."""

    def check(requests):
        for one in requests:
            assert "error" not in one, one
            expected, found = whole[one["row"]], np.array(one["scores"], np.float32)
            rung = one["rung"]
            if rung == "edge" or "-raw" in rung:
                error = np.max(np.abs(found - expected)) / np.max(np.abs(expected))
                assert error <= 1e-4, (rung, error)
            assert found.argmax() == expected.argmax(), one

    return check


@pytest.fixture
def settled():
    """Waits until a thing holds and goes on holding for some seconds."""

    def holds(look):
        try:
            return look()
        except Refused:  # an API server that was just started does not serve everything at once
            return False

    def wait(look, what, seconds, hold=3.0):
        end, since = time.monotonic() + seconds, None
        while True:
            since = (since or time.monotonic()) if holds(look) else None
            if since is not None and time.monotonic() - since >= hold:
                return
            assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}"
            time.sleep(0.5)

    return wait
