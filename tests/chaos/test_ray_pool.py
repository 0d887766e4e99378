"""A local pool whose Ray is killed, and whose owner is killed."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.http as triton
from tests.tiny_bundle import rows, write_tiny_bundle

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]


@dataclass
class Owner:
    """The owning process and what it said first."""

    process: subprocess.Popen[str]
    port: int
    application: str

    def says(self) -> dict[str, object]:
        """The next line it prints."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the owner ended"
        return json.loads(line)

    def ray(self) -> dict[psutil.Process, str]:
        """Every process below it but the guard, HAProxy and replicas among them, by title."""
        found = {}
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                found[process] = " ".join(process.cmdline())
        return {one: title for one, title in found.items() if "ray_guard" not in title}

    def scores(self) -> np.ndarray:
        """The tail's answer to one row."""
        client = triton.InferenceServerClient(f"127.0.0.1:{self.port}/{self.application}")
        given = triton.InferInput("x", [1, 3, 16, 16], "FP32")
        given.set_data_from_numpy(rows(1)["x"])
        return client.infer("tiny", [given]).as_numpy("scores")


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Owner]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.pool_owner", str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        first = json.loads(process.stdout.readline())
        yield Owner(process, first["port"], first["application"])
    finally:
        process.kill()  # its guard ends the rest
        process.wait()
        process.stdout.close()


def test_all_of_ray_comes_back_on_its_port_and_nothing_outlives_its_owner(
    owner: Owner, tmp_path: Path
):
    """Kill -9 every process of Ray, then the owner: first it recovers, then it leaves nothing."""
    want = write_tiny_bundle(tmp_path / "same").whole(rows(1))["scores"]
    np.testing.assert_allclose(owner.scores(), want, rtol=0, atol=1e-5)

    first = owner.ray()
    assert any("haproxy" in title for title in first.values())
    assert any("ServeReplica" in title for title in first.values())
    for process in first:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    assert owner.says() == {"restarted": True}
    np.testing.assert_allclose(owner.scores(), want, rtol=0, atol=1e-5)

    left = [*first, *owner.ray()]
    assert len(left) > len(first)
    owner.process.kill()
    stop = time.monotonic() + 60
    while any(process.is_running() for process in left):
        assert time.monotonic() < stop, [p for p in left if p.is_running()]
        time.sleep(0.1)
    with pytest.raises(OSError, match="refused"):
        owner.scores()
