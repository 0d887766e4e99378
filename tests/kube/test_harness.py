"""The harness itself: what it finds, what it says when it cannot, what it leaves behind."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tests.kube import binaries
from tests.kube.apiserver import ApiServerFailed, Refused, running
from tests.kube.binaries import Binary, find

from dovetail.errors import MissingTool

ROOT = Path(__file__).parents[2]
FALSE = Binary(Path(shutil.which("false") or "false"), "PATH")


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Three places to look in, each with a program of its own."""
    folders = {name: tmp_path / name for name in ("KUBEBUILDER_ASSETS", "PATH")}
    folders["built"] = tmp_path / binaries.KUBERNETES
    for folder in folders.values():
        folder.mkdir()
        (folder / "etcd").symlink_to(FALSE.path)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(folders["KUBEBUILDER_ASSETS"]))
    monkeypatch.setenv("PATH", str(folders["PATH"]))
    monkeypatch.setattr(binaries, "CACHE", tmp_path)
    return folders


def test_a_program_is_looked_for_where_the_user_says_then_on_path_then_where_it_is_built(places):
    """Verify the order of the places and that the one used is named."""
    for source, folder in places.items():
        assert find("etcd") == Binary(folder / "etcd", source)
        (folder / "etcd").unlink()

    with pytest.raises(MissingTool, match=r"etcd is neither .* run `make kube`, which needs Go"):
        find("etcd")


def test_without_go_a_build_says_what_is_missing(places, capsys):
    """Verify that a machine without Go is told so, with the exit code of a missing tool."""
    assert binaries.main(["kube-apiserver"]) == MissingTool.exit_code
    assert "Go is not on PATH" in capsys.readouterr().err


def test_a_program_that_ends_is_named_with_its_log(tmp_path):
    """Verify that a control plane that cannot start says which part of it, and ends the others."""
    with (
        pytest.raises(ApiServerFailed, match="etcd ended with 1 before it has a certificate"),
        running(tmp_path, FALSE, FALSE),
    ):
        pass


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv of util-linux")
def test_a_test_run_that_is_killed_takes_its_programs_with_it(tmp_path):
    """Verify that SIGKILL, after which no clean-up runs, leaves no control plane behind."""
    holder = (
        "import sys, time; from pathlib import Path; from tests.kube.apiserver import _process\n"
        "with _process(Path(sys.argv[1]), ['sleep', '600']) as program:\n"
        "    print(program.process.pid, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", holder, str(tmp_path / "sleep.log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as run:
        program = psutil.Process(int(run.stdout.readline()))
        while program.name() != "sleep":  # setpriv has then tied it and become it
            time.sleep(0.01)
        run.kill()

    psutil.wait_procs([program], timeout=30)
    assert not program.is_running() or program.status() == psutil.STATUS_ZOMBIE


@pytest.mark.kube
def test_two_servers_stand_side_by_side_and_leave_no_process(apiserver, tmp_path):
    """Verify that a second server knows nothing of the first and is gone when it is left."""
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "only-here"}}
    with running(tmp_path, find("etcd"), find("kube-apiserver")) as second:
        second.request("POST", "/api/v1/namespaces", body)
        with pytest.raises(Refused, match="not found"):
            apiserver.request("GET", "/api/v1/namespaces/only-here")

    assert second.etcd.process.poll() is not None
    assert second.apiserver.process.poll() is not None
