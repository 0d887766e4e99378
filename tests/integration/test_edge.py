"""The edge against a real tail on a real Ray Serve: sessions in-process, servers as processes."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
from tests.edge_process import EDGE, EdgeProcess, infer, running, until
from tests.integration.conftest import Served
from tests.tiny_bundle import rows, segments_of, write_tiny_bundle

from dovetail.codecs import CodecSet
from dovetail.errors import BundleCorrupt
from dovetail.plan import Plan
from dovetail.pool import TailApp
from dovetail.tensor import Array
from dovetail_cli.ray_pool import free_port
from dovetail_edge import Credentials, Session
from dovetail_serving.intake import token_digest

pytestmark = pytest.mark.ray

NAME = "edge/tiny"
TOKEN = "a camera's token"
RUNGS = ("cloud", "cloud-uint8", "cut1", "cut1-int8", "cut2", "cut2-int8-zstd", "edge")


class Setting:
    """A tail with a token, and the endpoint an edge calls."""

    def __init__(self, served: Served, folder: Path) -> None:
        self.served, self.folder = served, folder
        self.tiny = write_tiny_bundle(folder / "bundle", seed=3)
        self.endpoint = f"http://{served.address}"
        self.generation = 0
        self.publish(self.plan())

    def plan(self, default: str = "cut1", **more: object) -> Plan:
        """The next generation's plan; every session of a test module rises above the last."""
        self.generation += 1
        more = {"pinned": True, "deadline": 20.0, **more}
        return self.tiny.plan(default, generation=self.generation, deployment=NAME, **more)

    def publish(self, plan: Plan) -> None:
        """Let the tail hand out a plan."""
        app = TailApp(
            NAME,
            str(self.tiny.bundle.path),
            self.tiny.bundle.digest,
            {"camera": plan},
            tokens={"camera": token_digest(TOKEN)},
            actor_options={"num_cpus": 0.1},
        )
        self.served.serve(app)

    def session(self, plan: Plan) -> Session:
        return Session(
            self.tiny.bundle, plan, endpoint=self.endpoint, credentials=Credentials(TOKEN)
        )

    def through(self, rung_id: str, feed: dict[str, Array]) -> dict[str, Array]:
        """Head, codec and tail of a rung in this process: what must come back over the wire."""
        rung, config = self.tiny.bundle.config.rung(rung_id), self.tiny.bundle.config
        runtime, codecs = segments_of(self.tiny, optimize=True), CodecSet(config)
        live, _ = runtime.run(feed, 0, rung.cut)
        names = config.crossing(rung.cut)
        sent = codecs.unpack(rung.codec, names, tuple(codecs.pack(rung.codec, live, names)))
        done, _ = runtime.run(sent, rung.cut, len(config.segments))
        return {s.name: done[s.name] if s.name in done else live[s.name] for s in config.outputs}


@pytest.fixture(scope="module")
def setting(ray_pool: Served, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(ray_pool, tmp_path_factory.mktemp("edge"))


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("batch", [1, 3])
def test_every_rung_answers_as_head_codec_and_tail_in_one_process(
    setting: Setting, rung: str, batch: int
) -> None:
    """Nothing on the way changes an answer, for one row and for several."""
    feed = rows(batch, seed=batch)
    with setting.session(setting.plan(rung)) as session:
        answer = session.infer_detailed(feed)
    assert (answer.rung, answer.degraded) == (rung, False)
    assert list(answer.outputs) == ["brightness", "scores"]
    for name, want in setting.through(rung, feed).items():
        np.testing.assert_allclose(answer.outputs[name], want, rtol=1e-4, atol=1e-5)
    assert (answer.sample.bytes_up > 0) == (rung != "edge")


def test_a_plan_published_under_load_is_taken_over_and_no_request_fails(setting: Setting) -> None:
    """The header of an answer names the generation; the edge fetches it and moves in between."""
    feed = rows(1)
    want = setting.tiny.whole(feed)
    wrong: list[object] = []
    stop = threading.Event()
    with setting.session(setting.plan("cut1")) as session:

        def load() -> None:
            while not stop.is_set():
                answer = session.infer_detailed(feed)
                good = np.allclose(answer.outputs["scores"], want["scores"], atol=1e-4)
                if answer.degraded or not good:
                    wrong.append(answer)

        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads:
            thread.start()
        for rung in ("cut2", "cloud", "edge"):
            plan = setting.plan(rung)
            setting.publish(plan)
            until(lambda plan=plan: session.plan.generation == plan.generation)
        stop.set()
        for thread in threads:
            thread.join()
        status = session.status()
    assert not wrong
    assert [move.target for move in status.moves] == ["cut2", "cloud", "edge"]
    assert {move.reason for move in status.moves} == {"Plan"}


def test_an_idle_edge_learns_of_a_plan_by_itself(setting: Setting) -> None:
    """No request flows, and the plan still arrives."""
    with setting.session(setting.plan("cut1")) as session:
        plan = setting.plan("cut2")
        setting.publish(plan)
        until(lambda: session.plan.generation == plan.generation)
        assert session.status().rung == "cut2"


def test_lower_generations_and_plans_for_other_bundles_are_left(
    setting: Setting, tmp_path: Path
) -> None:
    """Plans may come late, twice, or for a bundle that is not here; what is in use goes on."""
    other = write_tiny_bundle(tmp_path / "other", seed=99)
    old, new = setting.plan("cut1"), setting.plan("cut2")
    with setting.session(new) as session:
        assert not session.adopt(old)
        assert not session.adopt(new)
        foreign = new.model_copy(
            update={"bundle": other.bundle.digest, "generation": new.generation + 1000}
        )
        assert not session.adopt(foreign)
        assert session.plan == new


def test_samples_reach_the_ledger(setting: Setting) -> None:
    """What the edge counted is what the operator reads."""
    with setting.session(setting.plan("cut2-int8-zstd")) as session:
        for _ in range(12):
            session.infer(rows(1))

        def told() -> bool:
            session.infer(rows(1))
            classes = setting.served.ledger()["windows"].get(NAME, {})
            rungs = classes.get("camera", {}).get("rungs", {})
            seen = rungs.get("cut2-int8-zstd", {}).get("outcomes", {})
            return bool(seen.get("ok", 0) >= 12)

        until(told)


def refused(setting: Setting) -> Session:
    """A device that the tail does not let in."""
    return Session(
        setting.tiny.bundle,
        setting.plan("cut1"),
        endpoint=setting.endpoint,
        credentials=Credentials("stolen"),
    )


def test_a_wrong_token_is_answered_on_the_edge(setting: Setting) -> None:
    """The tail refuses; the caller still gets the right answer, flagged."""
    feed = rows(1)
    with refused(setting) as session:
        answer = session.infer_detailed(feed)
    assert answer.degraded
    np.testing.assert_allclose(
        answer.outputs["scores"], setting.tiny.whole(feed)["scores"], rtol=1e-4, atol=1e-5
    )


def test_a_device_that_asks_no_more_tells_of_itself_and_not_of_the_rung_it_should_take(
    setting: Setting,
) -> None:
    """Verify what an operator reads of an outage.

    Counted under the rung of the plan, answers made here would say that it is as fast as the
    device, and the cut would stay where nobody answers.
    """
    feed = rows(1)
    with refused(setting) as session:
        answers = [session.infer_detailed(feed) for _ in range(20)]
    asked, alone = answers[0].sample, answers[-1].sample
    assert {answer.rung for answer in answers} == {"edge"}
    assert (asked.rung, asked.outcome, asked.whole) == ("cut1", "degraded", False)
    assert (alone.rung, alone.outcome, alone.whole) == ("edge", "degraded", True)
    assert alone.bytes_up == 0 < asked.bytes_up
    assert 0 < alone.parts.head == alone.parts.total <= alone.total


async def _many(session: Session, count: int) -> list[dict[str, Array]]:
    return await asyncio.gather(*(session.ainfer(rows(1, seed=s)) for s in range(count)))


def test_the_asynchronous_call_answers_like_the_synchronous_one(setting: Setting) -> None:
    """Many at once, each its own answer."""
    with setting.session(setting.plan("cut1")) as session:
        answers = asyncio.run(_many(session, 16))
    for seed, answer in enumerate(answers):
        want = setting.tiny.whole(rows(1, seed=seed))
        np.testing.assert_allclose(answer["scores"], want["scores"], rtol=1e-4, atol=1e-5)


def flags(setting: Setting, plan: Plan, endpoint: str) -> list[str]:
    """An edge that is given everything."""
    folder = setting.folder
    (folder / "plan.json").write_text(plan.model_dump_json(by_alias=True))
    (folder / "token").write_text(TOKEN + "\n")
    options = {
        "bundle": setting.tiny.bundle.path,
        "plan": folder / "plan.json",
        "endpoint": endpoint,
        "device-class": "camera",
        "token-file": folder / "token",
    }
    return [*EDGE, *(f"--{name}={value}" for name, value in options.items())]


def edge_process(
    setting: Setting, plan: Plan, *more: str, endpoint: str | None = None
) -> AbstractContextManager[EdgeProcess]:
    return running([*flags(setting, plan, endpoint or setting.endpoint), *more])


def test_tritonclient_calls_the_edge_unmodified(setting: Setting) -> None:
    """Health, metadata and inference, binary and JSON; the answer says which rung made it."""
    feed = rows(2)
    with edge_process(setting, setting.plan("cut1"), "--slowdown=2") as edge:
        client = edge.triton()
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("tiny")
        assert client.get_model_metadata("tiny")["inputs"][0]["shape"] == [-1, 3, 16, 16]
        assert client.get_server_metadata()["parameters"] == {"slowdown": 2.0}
        for binary in (True, False):
            result = infer(client, feed, binary=binary)
            for name, want in setting.tiny.whole(feed).items():
                np.testing.assert_allclose(result.as_numpy(name), want, rtol=1e-4, atol=1e-5)
            said = result.get_response()
            assert said["id"] == "r-1"
            assert said["parameters"]["rung"] == "cut1"
            assert said["parameters"]["degraded"] is False
        code, errors = edge.end()
    assert code == 0
    assert "slowdown 2" in errors


BAD: dict[str, tuple[str, bytes, dict[str, str], int, str]] = {
    "no JSON": ("tiny", b"{", {}, 400, "InvalidMessage"),
    "no input": ("tiny", b'{"inputs":[]}', {}, 400, "InvalidTensor"),
    "wrong shape": (
        "tiny",
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[1,2]}]}',
        {},
        400,
        "InvalidTensor",
    ),
    "wrong dtype": (
        "tiny",
        b'{"inputs":[{"name":"x","datatype":"INT8","shape":[1],"data":[1]}]}',
        {},
        400,
        "InvalidTensor",
    ),
    "unknown model": ("nobody", b"{}", {}, 404, "UnknownModel"),
    "unknown version": ("tiny/versions/7", b"{}", {}, 409, "UnknownVersion"),
    "unknown output": (
        "tiny",
        b'{"inputs":[],"outputs":[{"name":"nothing"}]}',
        {},
        400,
        "InvalidTensor",
    ),
    "senseless deadline": (
        "tiny",
        b"{}",
        {"x-request-timeout-seconds": "soon"},
        400,
        "InvalidMessage",
    ),
    "header length beyond the body": (
        "tiny",
        b"{}",
        {"Inference-Header-Content-Length": "99"},
        400,
        "InvalidMessage",
    ),
    "too large": ("tiny", b"{}", {"Content-Length": str(1 << 40)}, 413, "BodyTooLarge"),
}


def test_bad_requests_are_typed_errors_and_the_edge_goes_on(setting: Setting) -> None:
    """Every one names its class in `Dovetail-Error`, and a good request is answered after them."""
    with edge_process(setting, setting.plan("cut1")) as edge:
        for what, (model, body, headers, status, code) in BAD.items():
            got = edge.call("POST", f"/v2/models/{model}/infer", body, headers)
            assert (what, got.status, got.headers.get("dovetail-error")) == (what, status, code)
            assert json.loads(got.body)["error"]
        assert infer(edge.triton(), rows(1)).as_numpy("scores").shape == (1, 10)


def test_an_edge_killed_while_offline_comes_back_from_its_last_plan(setting: Setting) -> None:
    """Kill -9, no cloud, no newer plan in reach: it goes on from what it had learnt."""
    state, feed = setting.folder / "state", rows(1)
    first = setting.plan("cut1")
    with edge_process(setting, first, f"--state={state}") as edge:
        learnt = setting.plan("cut2")
        setting.publish(learnt)
        until(lambda: edge.status()["generation"] == learnt.generation)
        edge.end(signal.SIGKILL)
    nobody = f"http://127.0.0.1:{free_port()}"
    with edge_process(setting, first, f"--state={state}", endpoint=nobody) as edge:
        assert edge.status()["generation"] == learnt.generation
        assert edge.status()["rung"] == "cut2"
        result = infer(edge.triton(), feed)
    assert result.get_response()["parameters"]["degraded"] is True
    np.testing.assert_allclose(
        result.as_numpy("scores"), setting.tiny.whole(feed)["scores"], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("change", "code"),
    [({"bundle": "sha256:" + "0" * 64}, "BundleError"), ({"device_class": "x"}, "ManifestError")],
)
def test_an_edge_with_a_plan_that_is_not_its_own_does_not_start(
    setting: Setting, change: dict[str, str], code: str
) -> None:
    """Exit code 2 and one line that says why."""
    plan = setting.plan("cut1").model_copy(update=change)
    edge = EdgeProcess(*flags(setting, plan, setting.endpoint))
    exit_code, errors = edge.ended()
    assert exit_code == 2
    assert errors.startswith(f"{code}: ")


def test_a_corrupted_blob_is_found_before_anything_runs(setting: Setting, tmp_path: Path) -> None:
    """A flipped bit in a weight never becomes an answer."""
    tiny = write_tiny_bundle(tmp_path / "bundle", seed=3)
    weights = next(g.data for g in tiny.bundle.config.groups if g.data)
    path = tiny.bundle.blob_path(weights)
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleCorrupt, match=weights):
        Session(tiny.bundle, tiny.plan("cut1"), endpoint=setting.endpoint)


@contextmanager
def shaped_link(served: Served, link: str) -> Iterator[tuple[str, Callable[[str], None]]]:
    """A shaping proxy before the pool; yields its endpoint and what changes its link."""
    port = free_port()
    shaper = subprocess.Popen(
        [
            *(sys.executable, "-m", "dovetail_cli.shaper"),
            *(f"--listen={port}", f"--to={served.address}", f"--link={link}"),
        ],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert shaper.stdin is not None
    lines = shaper.stdin

    def change(to: str) -> None:
        lines.write(to + "\n")
        lines.flush()

    def listens() -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", port)) == 0

    try:
        until(listens)
        yield f"http://127.0.0.1:{port}", change
    finally:
        lines.close()
        shaper.wait(timeout=20)


def test_a_link_that_collapses_and_recovers_moves_the_rung_both_ways(
    setting: Setting, tmp_path: Path
) -> None:
    """On a slow device: off the cloud when the link is gone, back when it is; nothing fails."""
    tiny = write_tiny_bundle(tmp_path / "bundle", side=64, width=32)
    plan, feed = tiny.plan("cloud-uint8", deployment="edge/moving"), rows(1, side=64)
    want = tiny.whole(feed)["brightness"]
    setting.served.serve(
        TailApp(
            "edge/moving",
            str(tiny.bundle.path),
            tiny.bundle.digest,
            {"camera": plan},
            actor_options={"num_cpus": 0.1},
        )
    )
    with (
        shaped_link(setting.served, "200mbit,2ms") as (endpoint, change),
        Session(tiny.bundle, plan, endpoint=endpoint, slowdown=60) as session,
    ):

        def ask_until(on_edge: bool) -> None:
            stop = time.monotonic() + 60
            while (session.status().rung == "edge") != on_edge:
                assert time.monotonic() < stop, "the rung never moved"
                answer = session.infer_detailed(feed)
                np.testing.assert_allclose(answer.outputs["brightness"], want, rtol=0.02)

        for _ in range(20):
            session.infer(feed)
        ask_until(on_edge=False)
        for link, on_edge in (("32kbit,300ms", True), ("200mbit,2ms", False)):
            change(link)
            ask_until(on_edge)
        status = session.status()
    assert status.outcomes.get("failed", 0) == 0
    assert [move.target for move in status.moves].count("edge") >= 1
    assert status.slowdown == 60
