"""The partition Job as the process that a pod runs: a real HTTP server, a real registry."""

import functools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.kube.registry import REPOSITORY, running_registry
from tests.tiny_bundle import write_tiny_bundle

from dovetail.bundle import Bundle
from dovetail.errors import BundleError, MissingTool
from dovetail.layout import digest_of
from dovetail.registry import Registry
from dovetail_partitioner.job import MOST_WORDS
from dovetail_partitioner.verify import verify


@dataclass
class Setting:
    """What a Job meets: a folder behind HTTP, a registry, and a root with what is mounted."""

    served: Path
    web: str
    registry: str
    root: Path

    @property
    def target(self) -> str:
        return f"{self.registry}/{REPOSITORY}"

    def run(self, **spec: object) -> tuple[int, dict[str, str], str]:
        """Run the Job of a spec; gives exit code, last words and log."""
        manifest = {
            "apiVersion": "dovetail.dev/v1alpha1",
            "kind": "HybridDeployment",
            "metadata": {"name": "tiny", "namespace": "default"},
            "spec": spec,
        }
        (self.root / "dev").mkdir(exist_ok=True)
        command = [sys.executable, "-m", "dovetail_partitioner.job", f"--push={self.target}"]
        done = subprocess.run(
            [*command, f"--root={self.root}"],
            env=os.environ | {"DOVETAIL_MANIFEST": json.dumps(manifest)},
            capture_output=True,
            text=True,
            check=False,
        )
        words = (self.root / "dev" / "termination-log").read_bytes()
        assert len(words) <= MOST_WORDS
        return done.returncode, json.loads(words), done.stderr


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    try:
        with running_registry(tmp_path_factory.mktemp("registry")) as url:
            yield url
    except MissingTool as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_tiny_bundle(tmp_path_factory.mktemp("model") / "tiny", width=16).model


@pytest.fixture
def setting(tmp_path: Path, registry: str, model: bytes) -> Iterator[Setting]:
    served, root = tmp_path / "served", tmp_path / "root"
    served.mkdir()
    root.mkdir()
    (served / "tiny.onnx").write_bytes(model)
    handler = functools.partial(Quiet, directory=str(served))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Setting(served, f"http://127.0.0.1:{server.server_port}", registry, root)
    server.shutdown()
    thread.join()
    server.server_close()


def constant() -> bytes:
    """A model that answers the same whatever it is asked."""
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["x", "none"], ["zero"]),
            helper.make_node("Add", ["zero", "one"], ["y"]),
        ],
        "constant",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8])],
        [
            numpy_helper.from_array(np.zeros((1, 8), np.float32), "none"),
            numpy_helper.from_array(np.ones((1, 8), np.float32), "one"),
        ],
    )
    opset = [helper.make_opsetid("", 18)]
    made: bytes = helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()
    return made


def test_a_model_behind_http_becomes_a_bundle_in_the_registry_that_verifies(
    setting: Setting, model: bytes, tmp_path: Path
):
    """Verify the whole way: model, Job, registry, pull, `verify`; and the same again."""
    spec = {"model": {"uri": f"{setting.web}/tiny.onnx", "digest": digest_of(model)}}

    code, words, said = setting.run(**spec)

    assert code == 0, said
    registry = Registry.at(setting.target)
    registry.pull(words["bundle"], tmp_path / "pulled")
    found = verify(tmp_path / "pulled")
    assert found.digest == words["bundle"]
    assert all(rung.holds for rung in found.rungs)
    assert registry.costs(words["costs"]).bundle == words["bundle"]
    assert registry.description(words["bundle"]).model.name == "tiny"
    assert "fetching the model" in said
    assert "pushing" in said
    again, same, said = setting.run(**spec)
    assert (again, same) == (0, words), said
