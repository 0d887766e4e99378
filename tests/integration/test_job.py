"""The partition Job as the process that a pod runs: a real HTTP server, a real registry."""

import functools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.kube.registry import PASSWORD, REPOSITORY, USER, push_artifact, running_registry
from tests.tiny_bundle import write_tiny_bundle

from dovetail.bundle import Bundle
from dovetail.errors import ManifestError, MissingTool, by_code
from dovetail.layout import digest_of
from dovetail.registry import Registry
from dovetail_partitioner.job import MOST_WORDS, last_words
from dovetail_partitioner.proof import read_proof
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


def test_rows_behind_http_and_what_the_spec_declares_reach_the_bundle(
    setting: Setting, tmp_path: Path
):
    """Verify that a Job reads inputs, quality, wire and calibration as `dovetail up` does."""
    pixels = np.random.default_rng(3).integers(0, 256, (12, 3, 16, 16)).astype(np.float32) / 255
    np.savez(setting.served / "rows.npz", x=pixels)
    code, words, said = setting.run(
        model={"uri": f"{setting.web}/tiny.onnx"},
        calibration={"uri": f"{setting.web}/rows.npz"},
        inputs=[{"name": "x", "image": {"layout": "NCHW"}}],
        wire={"codecs": ["raw", "uint8", "int8"]},
        split={"maxSegments": 2},
    )

    assert code == 0, said
    Registry.at(setting.target).pull(words["bundle"], tmp_path / "pulled")
    config = Bundle(tmp_path / "pulled").config
    assert config.image is not None
    assert {rung.codec for rung in config.rungs} <= {"raw", "uint8", "int8"}
    assert len(config.segments) <= 2
    assert read_proof(Bundle(tmp_path / "pulled")).count == 12
    assert "fetching the rows" in said


def test_a_model_on_a_claim_is_read_where_it_lies_and_nothing_outside(
    setting: Setting, model: bytes
):
    """Verify a model of a claim; and that neither dots nor a link lead out of it."""
    claim = setting.root / "model"
    (claim / "nets").mkdir(parents=True)
    (claim / "nets" / "tiny.onnx").write_bytes(model)
    (claim / "link.onnx").symlink_to(setting.served / "tiny.onnx")
    (setting.root / "outside.onnx").write_bytes(model)

    code, words, said = setting.run(model={"uri": "pvc://models/nets/tiny.onnx"})
    assert code == 0, said
    assert set(words) == {"bundle", "costs"}
    for path, why in (
        ("../outside.onnx", "leads out of the claim"),
        ("link.onnx", "leads out of the claim"),
        ("gone.onnx", "the claim has no file gone.onnx"),
        ("nets", "the claim has no file nets"),
    ):
        code, words, _ = setting.run(model={"uri": f"pvc://models/{path}"})
        assert (code, words["error"]) == (2, "ManifestError")
        assert why in words["message"]


def test_a_model_in_a_registry_is_the_only_layer_of_its_artifact(setting: Setting, model: bytes):
    """Verify `oci://`: as `oras push` makes it, checked against the digest."""
    host = setting.registry.partition("//")[2]
    artifact = push_artifact(setting.registry, "models/tiny", model)

    code, words, said = setting.run(
        model={"uri": f"oci://{host}/models/tiny@{artifact}", "digest": digest_of(model)}
    )

    assert code == 0, said
    config = Registry.at(setting.target).description(words["bundle"])
    assert config.model.digest == digest_of(model)


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ({"model": {"uri": "WEB/gone.onnx"}}, "ManifestError", "404: there is no such file"),
        ({"model": {"uri": "file:tiny.onnx"}}, "ManifestError", "a cluster sees no file"),
        (
            {"model": {"uri": "WEB/tiny.onnx"}, "calibration": {"uri": "file:rows.npz"}},
            "ManifestError",
            "spec.calibration.uri is file:rows.npz",
        ),
        (
            {"model": {"uri": "WEB/tiny.onnx", "digest": "sha256:" + "0" * 64}},
            "ModelNotReadable",
            "the manifest expects sha256:000",
        ),
        ({"model": {"uri": "WEB/page.onnx"}}, "ModelNotReadable", ""),
        (
            {"model": {"uri": "WEB/tiny.onnx"}, "inputs": [{"name": "nobody"}]},
            "ManifestError",
            "names 'nobody', but the model's inputs are ['x']",
        ),
        (
            {"model": {"uri": "WEB/tiny.onnx"}, "inputs": [{"name": "x", "shape": [0, 7]}]},
            "ManifestError",
            "gives 'x' the shape [0, 7]; the model's is ['",
        ),
        ({"model": {"uri": "WEB/constant.onnx"}}, "ProofVacuous", ""),
        ({"model": {"uri": "WEB/tiny.onnx"}, "mode": "Guess"}, "ManifestError", "spec.mode"),
        ({"model": {"uri": "http://127.0.0.1:1/m.onnx"}}, "Unavailable", "does not answer"),
        ({"model": {"uri": "oci://127.0.0.1:1/m@sha256:1"}}, "ManifestError", "@sha256:DIGEST"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_job_that_makes_nothing_says_why_as_its_last_words(
    setting: Setting, spec: dict[str, Any], error: str, message: str
):
    """Verify name, message and exit code of what a person can cause."""
    (setting.served / "page.onnx").write_text("<html>please log in</html>")
    (setting.served / "constant.onnx").write_bytes(constant())

    code, words, said = setting.run(**json.loads(json.dumps(spec).replace("WEB", setting.web)))

    assert words["error"] == error, said
    assert message in words["message"]
    assert code == by_code(error).exit_code


def test_a_registry_that_refuses_the_push_is_named(setting: Setting, tmp_path: Path):
    """Verify that a missing login is told, with what to do."""
    folder = tmp_path / "closed"
    folder.mkdir()
    with running_registry(folder, login=True) as url:
        closed = replace(setting, registry=url)
        code, words, _ = closed.run(model={"uri": f"{setting.web}/tiny.onnx"})

        assert (code, words["error"]) == (2, "Unauthorized")
        assert "kubernetes.io/dockerconfigjson" in words["message"]
        login = setting.root / "etc" / "dovetail" / "registry" / "config.json"
        login.parent.mkdir(parents=True)
        entry = {"username": USER, "password": PASSWORD}
        login.write_text(json.dumps({"auths": {url.partition("//")[2]: entry}}))
        code, words, said = closed.run(model={"uri": f"{setting.web}/tiny.onnx"})
        assert code == 0, said


def test_a_model_that_is_not_there_anymore_in_the_registry_is_a_typed_error(setting: Setting):
    """Verify what an artifact that was deleted looks like."""
    host = setting.registry.partition("//")[2]
    code, words, _ = setting.run(model={"uri": f"oci://{host}/models/x@sha256:{'0' * 64}"})

    assert (code, words["error"]) == (2, "BundleError")
    assert "has no sha256:000" in words["message"]


@pytest.mark.parametrize("text", ["x" * 9000, "ä€" * 4000, '"\n' * 4000, "short"])
def test_last_words_fit_and_are_cut_where_they_would_not(text: str):
    """Verify that Kubernetes cuts nothing off, which would leave no JSON."""
    words = last_words(ManifestError(text))

    assert len(words) <= MOST_WORDS
    said = json.loads(words)
    assert said["error"] == "ManifestError"
    assert said["message"] == text or (
        said["message"].endswith("…") and text.startswith(said["message"][:-1])
    )
    assert text == "short" or len(words) > MOST_WORDS - 1000
