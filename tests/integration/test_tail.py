"""The tail on a real Ray Serve, behind its real ingress."""

import http.client
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton
import zstandard
from tests.callers import Callers
from tests.integration.conftest import Answer, Served
from tests.tiny_bundle import TinyBundle, rows, segments_of, write_tiny_bundle

from dovetail.bundle import RungSpec
from dovetail.codecs import CodecSet
from dovetail.errors import PoolFailed
from dovetail.ladder import Parts
from dovetail.measure import Sample, Window
from dovetail.plan import Plan
from dovetail.pool import TailApp
from dovetail.tensor import Array
from dovetail.wire import (
    HEADER_LENGTH,
    InferRequest,
    WireTensor,
    build_request,
    parse_response,
    parse_timing,
)
from dovetail_serving.intake import token_digest

pytestmark = pytest.mark.ray

TOKEN = "a camera's token"
MAX_BODY = 1 << 20
LIGHT = {"num_cpus": 0.1}
CAMERA = {"Dovetail-Device-Class": "camera"}


class Tails:
    """The tails these tests call: open, with a token, and with rows that influence each other."""

    def __init__(self, ray_pool: Served, folder: Path) -> None:
        self.ray = ray_pool
        self.tiny = write_tiny_bundle(folder / "tiny")
        self.dynamic = write_tiny_bundle(folder / "dynamic", dynamic=True)
        self.open = self._app(
            "default/tiny", self.tiny, settings={"max_body_bytes": MAX_BODY, "min_body_rate": 1e4}
        )
        self.closed = self._app(
            "default/closed",
            self.tiny,
            tokens={"camera": token_digest(TOKEN), "robot": token_digest("another")},
        )
        self.touchy = self._app("default/dynamic", self.dynamic)
        ray_pool.serve(self.open, self.closed, self.touchy)

    @staticmethod
    def _app(name: str, made: TinyBundle, **more: object) -> TailApp:
        plans = {"camera": made.plan(deployment=name)}
        path, digest = str(made.bundle.path), made.bundle.digest
        return TailApp(name, path, digest, plans, actor_options=LIGHT, **more)

    def infer(
        self,
        body: bytes,
        headers: dict[str, str],
        *,
        version: str = "",
        app: TailApp | None = None,
    ) -> Answer:
        """An inference call, of a version where one is given."""
        path = f"/{(app or self.open).application}/v2/models/tiny"
        path += f"/versions/{version}" if version else ""
        return self.ray.call("POST", f"{path}/infer", body, headers)

    def whole(self, feed: dict[str, Array], app: TailApp | None = None) -> Answer:
        """The whole model's answer."""
        return self.infer(*whole_request(feed), app=app)

    def rung(self, rung: RungSpec, feed: dict[str, Array]) -> tuple[Answer, dict[str, Array]]:
        """A rung call as an edge makes it; the answer and what it should say."""
        codecs, runtime = CodecSet(self.tiny.bundle.config), segments_of(self.tiny)
        names = self.tiny.bundle.config.crossing(rung.cut)
        live, _ = runtime.run(feed, 0, rung.cut)
        sent = tuple(codecs.pack(rung.codec, live, names))
        body, headers = build_request(InferRequest(sent))
        answer = self.infer(body, headers, version=f"{self.tiny.bundle.version}.{rung.id}")
        want, _ = runtime.run(codecs.unpack(rung.codec, names, sent), rung.cut, 3)
        return answer, want


def whole_request(feed: dict[str, Array]) -> tuple[bytes, dict[str, str]]:
    return build_request(InferRequest(tuple(WireTensor.of(n, a) for n, a in feed.items())))


def outputs(answer: Answer) -> dict[str, Array]:
    assert answer.status == 200, answer.body
    return parse_response(answer.body, answer.headers.get(HEADER_LENGTH.lower())).arrays()


def assert_same(found: dict[str, Array], want: dict[str, Array]) -> None:
    assert found.keys() <= want.keys()
    for name, array in found.items():
        np.testing.assert_allclose(array, want[name], rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def tails(ray_pool: Served, tmp_path_factory: pytest.TempPathFactory) -> Tails:
    return Tails(ray_pool, tmp_path_factory.mktemp("bundles"))


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_an_unmodified_triton_client_gets_the_whole_models_answers(tails: Tails, binary: bool):
    """Any client of the protocol can call a tail."""
    client = triton.InferenceServerClient(f"{tails.ray.address}/{tails.open.application}")
    feed = rows(3)
    given = triton.InferInput("x", list(feed["x"].shape), "FP32")
    given.set_data_from_numpy(feed["x"], binary_data=binary)
    wanted = [triton.InferRequestedOutput("scores", binary_data=binary)]

    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.get_model_metadata("tiny")["inputs"] == [
        {"name": "x", "datatype": "FP32", "shape": [-1, 3, 16, 16]}
    ]
    answer = client.infer("tiny", [given], outputs=wanted, request_id="seven")

    want = tails.tiny.whole(feed)["scores"]
    np.testing.assert_allclose(answer.as_numpy("scores"), want, rtol=0, atol=1e-5)
    assert answer.get_response()["id"] == "seven"
    assert answer.as_numpy("brightness") is None


def test_a_large_request_in_json_is_answered_like_a_small_one(tails: Tails):
    """Its numbers are parsed beside the event loop, by the same rules."""
    feed = rows(32)
    tensor = {"name": "x", "datatype": "FP32", "shape": [32, 3, 16, 16]}
    body = json.dumps({"inputs": [{**tensor, "data": feed["x"].ravel().tolist()}]}).encode()

    assert_same(outputs(tails.infer(body, {})), tails.tiny.whole(feed))
    assert tails.infer(body[:-1], {}).status == 400


def test_every_cut_answers_what_the_whole_does(tails: Tails):
    """Whatever crosses, the answer has the outputs made behind the cut and no other."""
    feed, config = rows(2), tails.tiny.bundle.config
    whole = tails.tiny.whole(feed)
    for rung in config.rungs:
        if rung.id == "edge":
            continue
        answer, want = tails.rung(rung, feed)
        found = outputs(answer)

        assert set(found) == {spec.name for spec in config.remote_outputs(rung.cut)}
        assert_same(found, want)
        if rung.codec == "raw":
            assert_same(found, whole)


def test_an_answer_says_how_long_each_stage_took_and_names_the_plan(tails: Tails):
    """The edge subtracts the stages from its round trip, and follows the plan's generation."""
    body, headers = whole_request(rows(1))
    answer = tails.infer(body, headers | CAMERA)

    timing = parse_timing(answer.headers["server-timing"])
    assert list(timing) == ["recv", "queue", "decode", "compute", "encode"]
    assert all(seconds >= 0 for seconds in timing.values())
    assert timing["compute"] > 0
    assert answer.headers["dovetail-plan"] == "1"


@pytest.mark.parametrize(
    "version", ["000000000000.cut1", "{own}.cut9", "{own}.edge", "1", "{own}.cut1-jpeg90"]
)
def test_a_version_that_is_not_served_is_409(tails: Tails, version: str):
    """A head never meets a tail of another version; the edge fetches its plan again."""
    answer = tails.infer(
        *whole_request(rows(1)), version=version.format(own=tails.tiny.bundle.version)
    )

    assert answer.status == 409
    assert answer.headers["dovetail-error"] == "UnknownVersion"


def test_another_model_is_404(tails: Tails):
    """The answer names the model that is served."""
    body, headers = whole_request(rows(1))
    path = f"/{tails.open.application}/v2/models/other/infer"
    answer = tails.ray.call("POST", path, body, headers)

    assert (answer.status, answer.headers["dovetail-error"]) == (404, "UnknownModel")
    assert "'tiny'" in answer.json()["error"]


def damaged() -> Iterator[tuple[str, bytes, dict[str, str]]]:
    """Bodies that are no request, each with a name."""
    good, headers = whole_request(rows(1))
    head = int(headers[HEADER_LENGTH])
    yield "empty", b"", {}
    yield "not JSON", b"\x00" * 64, {}
    yield "header longer than the body", good, {HEADER_LENGTH: str(len(good) + 1)}
    yield "header not a number", good, {HEADER_LENGTH: "ten"}
    yield "truncated", good[:-4], headers
    yield "bytes too many", good + b"\x00" * 4, headers
    yield "no inputs", b"{}", {}
    yield "inputs not a list", b'{"inputs": 7}', {}
    yield "other name", good.replace(b'"x"', b'"y"', 1), headers
    yield "other datatype", good[:head].replace(b"FP32", b"INT8") + good[head:], headers
    yield "unknown datatype", good[:head].replace(b"FP32", b"FP31") + good[head:], headers
    yield "other shape", good[:head].replace(b"[1,3,16,16]", b"[1,3,8,32]") + good[head:], headers
    yield "huge shape", good[:head].replace(b"[1,3,", b"[9,3,") + good[head:], headers
    yield "given twice", *whole_twice()
    yield "nested deep", b'{"inputs":' + b"[" * 50_000 + b"]" * 50_000 + b"}", {}
    wanted, more = build_request(
        InferRequest((WireTensor.of("x", rows(1)["x"]),), outputs={"nothing": True})
    )
    yield "unknown output", wanted, more


def whole_twice() -> tuple[bytes, dict[str, str]]:
    tensor = WireTensor.of("x", rows(1)["x"])
    return build_request(InferRequest((tensor, tensor)))


@pytest.mark.parametrize(("body", "headers"), [pytest.param(b, h, id=n) for n, b, h in damaged()])
def test_a_damaged_message_is_a_typed_400_and_the_next_is_answered(
    tails: Tails, body: bytes, headers: dict[str, str]
):
    """Nothing crashes; the error says what was wrong."""
    answer = tails.infer(body, headers)

    assert answer.status == 400
    assert answer.headers["dovetail-error"] in ("InvalidMessage", "InvalidTensor")
    assert answer.json()["error"]
    outputs(tails.whole(rows(1)))


def test_a_few_bytes_that_claim_to_become_many_are_refused_before_they_do(tails: Tails):
    """A compressed tensor of 64 MB of zeros is 2 kB on the wire."""
    count = 1 << 17
    plain = zstandard.ZstdCompressor().compress(bytes(count * 512))
    shape = {"codec": "int8-zstd", "dtype": "float32", "shape": [count, 8, 8, 8]}
    sent = tuple(WireTensor(n, "UINT8", (len(plain),), plain, shape) for n in ("a", "b"))
    body, headers = build_request(InferRequest(sent))
    assert len(body) < MAX_BODY

    answer = tails.infer(body, headers, version=f"{tails.tiny.bundle.version}.cut2-int8-zstd")

    assert (answer.status, answer.headers["dovetail-error"]) == (413, "BodyTooLarge")


@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
def test_a_body_over_the_bound_is_413(tails: Tails, chunked: bool):
    """Declared lengths are refused unread, undeclared ones while reading."""
    connection = http.client.HTTPConnection(tails.ray.pool.host, tails.ray.pool.port, timeout=60)
    path = f"/{tails.open.application}/v2/models/tiny/infer"
    pieces = iter([b"x" * (MAX_BODY // 4)] * 5)
    body = pieces if chunked else b"x" * (MAX_BODY + 1)
    connection.request(
        "POST",
        path,
        body,
        encode_chunked=chunked,
        headers={**({"Transfer-Encoding": "chunked"} if chunked else {})},
    )
    answer = connection.getresponse()

    assert answer.status == 413
    assert answer.headers["Dovetail-Error"] == "BodyTooLarge"
    connection.close()


def stalled(tails: Tails, sent: bytes = b"x") -> socket.socket:
    """A connection whose upload does not go on."""
    link = socket.create_connection((tails.ray.pool.host, tails.ray.pool.port), timeout=60)
    path = f"/{tails.open.application}/v2/models/tiny/infer"
    head = f"POST {path} HTTP/1.1\r\nHost: tail\r\nContent-Length: 100000\r\n\r\n"
    link.sendall(head.encode() + sent)
    return link


def test_a_body_slower_than_the_least_rate_is_408(tails: Tails):
    """A stalled upload may not hold its memory for ever."""
    with stalled(tails) as link:
        answer = link.recv(4096)

    assert b" 408 " in answer.splitlines()[0]
    assert b"dovetail-error: BodyTooSlow" in answer


def test_slow_uploads_do_not_keep_a_ready_request_from_being_computed(tails: Tails):
    """Compute is admitted after the last byte, so an upload holds no place in the queue."""
    slow = [stalled(tails) for _ in range(100)]  # more than may wait for a computation
    try:
        feed = rows(1)
        assert_same(outputs(tails.whole(feed)), tails.tiny.whole(feed))
    finally:
        for link in slow:
            link.close()


def test_concurrent_requests_get_the_answers_they_get_alone(tails: Tails):
    """Batches of what waits together, of one row and of several, on every cut."""
    config = tails.tiny.bundle.config
    rungs = [rung for rung in config.rungs if rung.cut < 3]

    def one(number: int) -> None:
        feed = rows(1 + number % 3, seed=number)
        if number % 4 == 0:
            assert_same(outputs(tails.whole(feed)), tails.tiny.whole(feed))
        else:
            answer, want = tails.rung(rungs[number % len(rungs)], feed)
            assert_same(outputs(answer), want)

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(one, range(96)))


def test_rows_that_influence_each_other_get_the_answers_they_get_alone(tails: Tails):
    """Dynamic quantisation: a neighbour in the batch would change the answer."""

    def one(number: int) -> None:
        feed = rows(1, seed=number)
        assert_same(outputs(tails.whole(feed, tails.touchy)), tails.dynamic.whole(feed))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(one, range(48)))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": f"Bearer {TOKEN}", "Dovetail-Device-Class": "robot"},
        {"Authorization": f"Bearer {token_digest(TOKEN)}"},
    ],
    ids=["none", "wrong", "no bearer", "another class", "the digest itself"],
)
def test_a_token_that_is_not_the_classs_is_401(tails: Tails, headers: dict[str, str]):
    """A credential is scoped to one deployment and class."""
    body, plain = whole_request(rows(1))
    for method, path, content in (
        ("POST", "/v2/models/tiny/infer", body),
        ("GET", "/dovetail/plan", None),
        ("POST", "/dovetail/samples", b"{}"),
        ("POST", "/dovetail/probe", b"x"),
    ):
        url = f"/{tails.closed.application}{path}"
        answer = tails.ray.call(method, url, content, {**plain, **headers})
        assert (answer.status, answer.headers["dovetail-error"]) == (401, "Unauthorized"), path


def test_the_right_token_is_served_and_says_which_class_it_is(tails: Tails):
    """The class need not be named: the token is one class's."""
    body, headers = whole_request(rows(1))
    answer = tails.infer(body, {**headers, "Authorization": f"Bearer {TOKEN}"}, app=tails.closed)

    assert answer.status == 200
    assert answer.headers["dovetail-plan"] == "1"


def test_the_plan_is_handed_out_to_its_class(tails: Tails):
    """An edge fetches it when it sees a higher generation."""
    path = f"/{tails.open.application}/dovetail/plan"
    answer = tails.ray.call("GET", path, headers=CAMERA)

    assert Plan.model_validate_json(answer.body) == tails.tiny.plan()
    assert answer.headers["dovetail-plan"] == "1"
    missing = tails.ray.call("GET", path, headers={"Dovetail-Device-Class": "robot"})
    assert (missing.status, missing.headers["dovetail-error"]) == (404, "UnknownPlan")


def test_a_probe_says_how_long_its_bytes_took_and_is_bounded(tails: Tails):
    """An idle edge measures its link with it."""
    path = f"/{tails.open.application}/dovetail/probe"
    answer = tails.ray.call("POST", path, b"x" * (256 << 10))

    assert answer.status == 204
    assert parse_timing(answer.headers["server-timing"])["recv"] >= 0
    assert tails.ray.call("POST", path, b"x" * ((256 << 10) + 1)).status == 413


def test_a_request_whose_time_is_up_is_a_504_of_ours(tails: Tails):
    """The ingress watches the same header; its own answer would not name the error."""
    link = socket.create_connection((tails.ray.pool.host, tails.ray.pool.port), timeout=60)
    body, headers = whole_request(rows(1))
    headers |= {"x-request-timeout-seconds": "0.5", "Content-Length": str(len(body))}
    path = f"/{tails.open.application}/v2/models/tiny/infer"
    head = f"POST {path} HTTP/1.1\r\nHost: tail\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    link.sendall(f"{head}\r\n".encode() + body[:-1])  # the last byte never comes
    answer = link.recv(4096)
    link.close()

    assert b" 504 " in answer.splitlines()[0]
    assert b"dovetail-error: DeadlineExceeded" in answer


def test_samples_of_an_edge_reach_the_ledger(tails: Tails):
    """Twice, so that what a replica gathers and what the ledger merges both add up."""
    path = f"/{tails.open.application}/dovetail/samples"
    window = Window()
    for seconds in (0.01, 0.02, 0.03):
        window.add(Sample("cut1", Parts(head=seconds), seconds, "ok"))
    body = json.dumps({"deviceClass": "scale", "window": window.dump()}).encode()
    for _ in range(2):
        headers = {"Dovetail-Device-Class": "scale"}
        assert tails.ray.call("POST", path, body, headers).status == 204

    def arrived() -> bool:
        found = tails.ray.ledger()["windows"].get("default/tiny", {}).get("scale")
        return found is not None and Window.load(found).count == 6

    wait_for(arrived)
    contacts = tails.ray.ledger()["contacts"]["default/tiny"]["scale"]
    assert list(contacts) == [tails.tiny.bundle.version]


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b'{"deviceClass": "camera"}', b'{"deviceClass": "camera", "window": 7}'],
    ids=["empty", "a list", "no window", "window is a number"],
)
def test_samples_that_are_none_are_a_typed_400(tails: Tails, body: bytes):
    """A device's mistake must not end a replica."""
    answer = tails.ray.call("POST", f"/{tails.open.application}/dovetail/samples", body, CAMERA)

    assert (answer.status, answer.headers["dovetail-error"]) == (400, "InvalidMessage")


def wait_for(true: object, seconds: float = 60.0) -> None:
    stop = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < stop, "it did not happen"
        time.sleep(0.1)


class Load(Callers):
    """Callers that go on until told to stop; each answer is checked."""

    def __init__(self, tails: Tails, callers: int = 4) -> None:
        self._tails = tails
        self.generations: list[str] = []
        self.wrong: list[object] = []
        self.failed = 0
        self._feed = rows(1)
        self._want = tails.tiny.whole(self._feed)
        super().__init__([self._call] * callers)

    def _call(self, end: threading.Event) -> None:
        body, headers = whole_request(self._feed)
        while not end.is_set():
            try:
                answer = self._tails.infer(body, headers | CAMERA)
            except (OSError, http.client.HTTPException):
                self.failed += 1
                continue
            if answer.status != 200:
                self.failed += 1
                continue
            self.generations.append(answer.headers["dovetail-plan"])
            try:
                assert_same(outputs(answer), self._want)
            except AssertionError as error:
                self.wrong.append(error)


def test_a_change_of_plan_under_load_loses_nothing_and_restarts_nothing(tails: Tails):
    """A move is a swap of a pointer; a lower generation that comes late changes nothing."""
    before = tails.ray.replica_pids(tails.open.application)

    def publish(generation: int, default: str) -> None:
        plan = tails.tiny.plan(default, generation=generation)
        tails.ray.serve(replace(tails.open, plans={"camera": plan}))

    with Load(tails) as load:
        wait_for(lambda: len(load.generations) > 20)
        publish(3, "cut2")
        wait_for(lambda: "3" in load.generations)
        publish(2, "cut1")
        count = len(load.generations)
        wait_for(lambda: len(load.generations) > count + 50)

    assert load.failed == 0
    assert load.wrong == []
    assert load.generations[-1] == "3"
    assert tails.ray.replica_pids(tails.open.application) == before


def test_a_bundle_that_is_none_is_refused_in_words_and_disturbs_nobody(
    tails: Tails, tmp_path: Path
):
    """What failed to deploy says why; what ran before runs on."""
    bad = replace(tails.open, deployment="default/bad", bundle=str(tmp_path))
    try:
        with pytest.raises(PoolFailed, match="is not a bundle"):
            tails.ray.serve(bad)
        outputs(tails.whole(rows(1)))
    finally:
        tails.ray.drop(bad)


def test_a_killed_replica_comes_back_by_itself_and_no_answer_is_ever_wrong(tails: Tails):
    """Requests in it are cut; those after it are answered once another has started."""
    [pid] = tails.ray.replica_pids(tails.open.application)
    with Load(tails) as load:
        wait_for(lambda: len(load.generations) > 20)
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: tails.ray.replica_pids(tails.open.application) not in ([], [pid]))
        count = len(load.generations)
        wait_for(lambda: len(load.generations) > count + 20)

    assert load.wrong == []
    outputs(tails.whole(rows(1)))
