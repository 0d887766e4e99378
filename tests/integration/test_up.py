"""`dovetail up` as a person runs it: a real pool, real edges, a link that changes, and an end."""

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.http as triton
from tests.tiny_bundle import rows, write_tiny_bundle

from dovetail_cli.local.client import EdgeClient

pytestmark = pytest.mark.ray

SIDE = 96
MANIFEST = """
apiVersion: dovetail.dev/v1alpha1
kind: HybridDeployment
metadata: {name: tiny}
spec:
  model: {uri: "file:tiny.onnx"}
  inputs: [{name: x, shape: [0, 3, 96, 96]}]
  adapt: {window: 1s, cooldown: 2s}
"""
TRACE = "0, 200mbit, 1ms\n25, 64kbit, 400ms\n"
MARK = "DOVETAIL_TEST_MARK"


class Up:
    """A `dovetail up` process; everything it starts inherits a mark of the test's own."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.mark = folder, secrets.token_hex(8)
        command = [sys.executable, "-m", "dovetail_cli.main", "up", str(folder / "up.yaml")]
        self.log = folder / f"up-{self.mark}.log"
        self.process = subprocess.Popen(
            [*command, "--state", str(folder / "state"), "-o", "json", *options],
            env={**os.environ, MARK: self.mark},
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            text=True,
        )

    def said(self) -> str:
        return self.log.read_text()

    def wait_for(self, text: str) -> str:
        """Wait until it said something that matches; returns the first group."""

        def found() -> str | None:
            match = re.search(text, self.said())
            return match[1] if match else None

        return until(found, f"{text!r} in what it said", lambda: self.process.poll() is None)

    def left(self) -> list[str]:
        """Processes it started, itself included, that are alive."""
        return [
            " ".join(process.info["cmdline"] or [])
            for process in psutil.process_iter(["cmdline", "environ", "status"])
            if (process.info["environ"] or {}).get(MARK) == self.mark
            and process.info["status"] != psutil.STATUS_ZOMBIE
        ]

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def until(look: Callable[[], Any], what: str, alive: Callable[[], bool]) -> Any:
    """Look until there is something; the limit is far beyond what it takes."""
    stop = time.monotonic() + 120
    while time.monotonic() < stop and alive():
        if (found := look()) is not None:
            return found
        time.sleep(0.1)
    pytest.fail(f"never came: {what}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest with its model beside it."""
    path = tmp_path_factory.mktemp("up")
    tiny = write_tiny_bundle(path / "unused", side=SIDE, width=24)
    (path / "tiny.onnx").write_bytes(tiny.model)
    (path / "up.yaml").write_text(MANIFEST)
    (path / "link.trace").write_text(TRACE)
    return path


@pytest.fixture(scope="module")
def up(folder: Path) -> Iterator[Up]:
    """A system whose link collapses, on a slow device."""
    running = Up(folder, "--trace", str(folder / "link.trace"), "--slowdown", "60")
    yield running
    running.kill()


@pytest.fixture(scope="module")
def url(up: Up) -> str:
    """Where its edge answers."""
    return up.wait_for(r"ready: .* default (http://\S+)")


def _ask(url: str, feed: dict[str, Any]) -> tuple[str, Any]:
    """One request by an unmodified client: the rung that answered, and the scores."""
    with triton.InferenceServerClient(url.removeprefix("http://")) as client:
        tensor = triton.InferInput("x", list(feed["x"].shape), "FP32")
        tensor.set_data_from_numpy(feed["x"])
        answer = client.infer("tiny", [tensor])
    return answer.get_response()["parameters"]["rung"], answer.as_numpy("scores")


def test_a_client_is_answered_while_the_cut_moves_out_and_back(
    up: Up, url: str, folder: Path
) -> None:
    """On a good link the cloud helps, on a bad one the device answers; no answer changes."""
    feed = rows(1, side=SIDE)
    whole = write_tiny_bundle(folder / "whole", side=SIDE, width=24).whole(feed)["scores"]

    def there_and_back() -> bool | None:
        _, scores = _ask(url, feed)
        assert np.argmax(scores) == np.argmax(whole)
        if "link is now 64kbit,400ms" not in up.said():
            return None
        status = EdgeClient(url).status()
        away = any(move["target"] != "edge" for move in status["moves"])
        return (away and status["rung"] == "edge") or None

    until(there_and_back, "a move to the cloud, then back", lambda: up.process.poll() is None)

    totals = EdgeClient(url).status()["totals"]["rungs"]
    assert "edge" in totals
    assert len(totals) > 1


def test_a_second_up_on_the_same_state_is_refused(url: str, folder: Path) -> None:
    """Two of them would give generations twice; the message says who holds the folder."""
    second = Up(folder)

    assert second.process.wait(60) == 2

    assert "in use by another `dovetail up`" in second.said()
    assert EdgeClient(url).status()["rung"]


def test_an_edge_that_is_killed_comes_back_and_it_is_said(up: Up, url: str) -> None:
    """The same address answers again, and the view says what happened."""
    [edge] = [
        process
        for process in psutil.process_iter(["cmdline", "environ"])
        if "dovetail_edge" in (process.info["cmdline"] or [])
        and (process.info["environ"] or {}).get(MARK) == up.mark
    ]
    edge.kill()

    up.wait_for(r"(edge default started again)")

    def answers() -> Any:
        try:
            return _ask(url, rows(1, side=SIDE))
        except (OSError, triton.InferenceServerException):
            return None

    until(answers, "an answer of the new process", lambda: up.process.poll() is None)


def test_ctrl_c_ends_everything_and_prints_the_summary(up: Up, url: str) -> None:
    """What was counted is on stdout as JSON, and no process is left."""
    assert EdgeClient(url).status()["slowdown"] == 60

    up.process.send_signal(signal.SIGINT)
    printed, _ = up.process.communicate(timeout=120)

    assert up.process.returncode == 0
    summary = json.loads(printed)
    assert summary["classes"][0]["requests"] > 0
    assert summary["classes"][0]["failed"] == 0
    assert summary["slowdown"] == 60
    assert up.left() == []


def test_nothing_is_left_when_it_is_killed(folder: Path, url: str) -> None:
    """Nobody handles SIGKILL: what it started notices that it is gone."""
    again = Up(folder, "--for", "100s")
    again.wait_for(r"(kept from before)")
    again.wait_for(r"ready: .* default (http://\S+)")
    again.kill()

    until(lambda: again.left() == [] or None, "the end of all it started", lambda: True)


@pytest.mark.parametrize(
    ("manifest", "says"),
    [
        pytest.param(MANIFEST.replace("window: 1s", "window: soon"), "window", id="schema"),
        pytest.param(MANIFEST, "tiny.onnx", id="no-model"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_starts(
    tmp_path: Path, manifest: str, says: str
) -> None:
    """Exit code 2, a message that names the fault, and no process."""
    (tmp_path / "up.yaml").write_text(manifest)
    up = Up(tmp_path)

    assert up.process.wait(60) == 2

    assert says in up.said()
    assert up.left() == []
