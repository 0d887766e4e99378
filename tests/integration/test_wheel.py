"""The wheel as a user gets it: built, installed into a clean environment, imported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dovetail_cli.ray_pool import free_port

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).with_name("uv")

FORBIDDEN_ON_AN_EDGE = {"torch", "ray", "kubernetes", "onnx", "scipy", "matplotlib"}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The project's wheel, built from the working tree."""
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run([UV, "build", "-q", "--wheel", "--out-dir", out, ROOT], check=True)
    [path] = out.glob("dovetail-*.whl")
    return path


def environment(tmp_path, wheel, extra):
    """A clean virtual environment with `dovetail[extra]` from the wheel; returns its python."""
    subprocess.run([UV, "venv", "-q", "--python", sys.executable, tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    name = f"dovetail{extra} @ {wheel.as_uri()}"
    command = [UV, "pip", "install", "-q", "--python", python, "-c", ROOT / "constraints.txt", name]
    subprocess.run(command, check=True)
    return python


def installed(python):
    """Names of the distributions an environment holds."""
    listed = subprocess.run(
        [UV, "pip", "list", "--format", "json", "--python", python],
        check=True,
        capture_output=True,
    )
    return {entry["name"].lower() for entry in json.loads(listed.stdout)}


def imports(python, modules):
    """Import modules in a folder that is not the checkout."""
    code = "; ".join(f"import {module}" for module in modules)
    command = [python, "-c", code]
    return subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)


def test_the_edge_extra_installs_and_imports_without_torch_ray_or_kubernetes(tmp_path, wheel):
    """Verify that a device gets what it needs and nothing of the cluster."""
    python = environment(tmp_path, wheel, "[edge]")

    assert not installed(python) & FORBIDDEN_ON_AN_EDGE
    done = imports(python, ["dovetail.runtime", "dovetail.codecs", "dovetail_edge"])
    assert done.returncode == 0, done.stderr
    join = [python.with_name("dovetail"), "edge", "join", "http://127.0.0.1:9"]
    here = [f"--state={tmp_path / 'state'}", f"--port={free_port()}", "--token-file=/dev/null"]
    joined = subprocess.run([*join, *here], cwd="/", capture_output=True, text=True, check=False)
    assert (joined.returncode, "holds no token" in joined.stderr) == (2, True), joined.stderr


def test_no_extra_still_gives_a_command_that_says_what_to_install(tmp_path, wheel):
    """Verify that the bare wheel has a working `dovetail` and names the extra it lacks."""
    python = environment(tmp_path, wheel, "")
    dovetail = python.with_name("dovetail")

    helped = subprocess.run([dovetail, "--help"], cwd="/", capture_output=True, check=False)
    assert helped.returncode == 0, helped.stderr
    refused = subprocess.run(
        [dovetail, "inspect", "/dev/null"], cwd="/", capture_output=True, text=True, check=False
    )
    assert refused.returncode == 3
    assert "dovetail[partitioner]" in refused.stderr


def test_the_partitioner_extra_imports_without_ray(tmp_path, wheel):
    """Verify that a build machine can cut models without a serving stack."""
    python = environment(tmp_path, wheel, "[partitioner]")

    assert not installed(python) & {"ray", "torch", "kubernetes"}
    done = imports(python, ["dovetail_partitioner.partition", "dovetail_cli.main"])
    assert done.returncode == 0, done.stderr
