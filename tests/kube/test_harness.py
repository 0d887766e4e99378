"""The harness itself: what it finds, what it says when it cannot, what it leaves behind."""

import functools
import hashlib
import http.server
import io
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from tests.kube import binaries
from tests.kube.apiserver import ApiServerFailed, Refused, running
from tests.kube.binaries import ETCD, KUBERNETES, Binary, find

from dovetail.errors import MissingTool

ROOT = Path(__file__).parents[2]
FALSE = Binary(Path(shutil.which("false") or "false"), "PATH")


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Four places to look in, each with a program of its own."""
    folders = {name: tmp_path / name for name in ("KUBEBUILDER_ASSETS", "PATH")}
    folders["built"] = tmp_path / KUBERNETES
    folders["downloaded"] = tmp_path / KUBERNETES / "downloaded"
    for folder in folders.values():
        folder.mkdir()
        (folder / "etcd").symlink_to(FALSE.path)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(folders["KUBEBUILDER_ASSETS"]))
    monkeypatch.setenv("PATH", str(folders["PATH"]))
    monkeypatch.setattr(binaries, "CACHE", tmp_path)
    return folders


def test_a_program_is_looked_for_where_the_user_says_then_on_path_then_in_the_cache(places):
    """Verify the order of the places and that the one used is named."""
    for source, folder in places.items():
        assert find("etcd") == Binary(folder / "etcd", source)
        (folder / "etcd").unlink()

    with pytest.raises(MissingTool, match=r"etcd is neither .* nor downloaded; run `make kube`"):
        find("etcd")


@pytest.fixture
def publisher(tmp_path, monkeypatch):
    """A publisher of releases on loopback: the folder that it serves, and its address."""
    monkeypatch.setattr(binaries, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(binaries.platform, "machine", lambda: "x86_64")
    folder = tmp_path / "published"
    folder.mkdir()
    with served(functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)) as host:
        yield folder, host


@contextmanager
def served(handler):
    """An HTTP server on loopback; gives its address."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def publish(folder, data=b"#!/bin/sh\necho serves\n", digest=None):
    """Publish a kube-apiserver with its SHA-256, or with another."""
    file = folder / KUBERNETES / "bin" / "linux" / "amd64" / "kube-apiserver"
    file.parent.mkdir(parents=True)
    file.write_bytes(data)
    file.with_suffix(".sha256").write_text(digest or hashlib.sha256(data).hexdigest())


def kept(folder):
    """Files of the cache."""
    return [path.name for path in (folder.parent / "cache").rglob("*") if path.is_file()]


def test_a_program_of_kubernetes_is_downloaded_and_then_found(publisher, monkeypatch):
    """Verify that an official release runs, is said to be downloaded, and is there from then on."""
    folder, host = publisher
    publish(folder)
    program = binaries.download("kube-apiserver", host)

    assert subprocess.check_output([program.path]) == b"serves\n"
    assert str(program).endswith("kube-apiserver (downloaded)")
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    assert find("kube-apiserver") == program


def test_etcd_is_taken_out_of_the_archive_of_its_release(publisher):
    """Verify the archive whose SHA-256 stands among others, each with its name."""
    folder, host = publisher
    stem = f"etcd-{ETCD}-linux-amd64"
    archive = folder / ETCD / f"{stem}.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as packed:
        for name in ("README.md", "etcd"):
            member = tarfile.TarInfo(f"{stem}/{name}")
            member.size = len(name)
            packed.addfile(member, io.BytesIO(name.encode()))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    sums = f"{'0' * 64}  etcd-{ETCD}-linux-arm64.tar.gz\n{digest}  {archive.name}\n"
    (archive.parent / "SHA256SUMS").write_text(sums)

    assert binaries.download("etcd", host).path.read_bytes() == b"etcd"


def test_a_download_that_is_not_what_its_checksum_says_is_refused(publisher):
    """Verify that nothing of it is kept."""
    folder, host = publisher
    publish(folder, digest="ab" * 32)
    with pytest.raises(MissingTool, match=f"has the SHA-256 .*, and {'ab' * 32} is published"):
        binaries.download("kube-apiserver", host)

    assert kept(folder) == []


class Short(http.server.SimpleHTTPRequestHandler):
    """Sends half of every program that it announces whole."""

    def copyfile(self, source, outputfile):
        data = source.read()
        outputfile.write(data if self.path.endswith(".sha256") else data[: len(data) // 2])


def test_a_download_that_breaks_off_is_refused(publisher):
    """Verify that half a program is not kept."""
    folder, _ = publisher
    publish(folder)
    with (
        served(functools.partial(Short, directory=folder)) as host,
        pytest.raises(MissingTool, match="kube-apiserver broke off"),
    ):
        binaries.download("kube-apiserver", host)

    assert kept(folder) == []


def test_a_release_that_is_not_there_is_named(publisher):
    """Verify that the address which was asked stands in the message."""
    _, host = publisher
    with pytest.raises(MissingTool, match=f"{host}/{KUBERNETES}/bin.* is answered with 404"):
        binaries.download("kube-apiserver", host)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("helm", "not downloaded (helm is neither of Kubernetes nor etcd"),
        ("kubectl", "not downloaded (there is no official release of kubectl for Linux on mips"),
    ],
)
def test_what_nothing_brings_is_named_with_every_way(places, capsys, monkeypatch, name, why):
    """Verify that a machine without Go and without a release is told of all four ways."""
    monkeypatch.setattr(binaries.platform, "machine", lambda: "mips")
    assert binaries.main([name]) == MissingTool.exit_code

    said = capsys.readouterr().err
    for way in ("neither in KUBEBUILDER_ASSETS (", "nor on PATH", "Go is not on PATH", why):
        assert way in said


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
