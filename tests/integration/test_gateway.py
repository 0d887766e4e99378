"""The gateway carries requests: the chart's own configuration in the real HAProxy, on loopback."""

import hashlib
import http.client
import os
import random
import signal
import socket
import ssl
import threading
import time

import numpy as np
import pytest
from tests.certificates import Authority
from tests.integration.gateway import (
    Upstream,
    running_gateway,
    running_names,
    until,
)
from tests.kube.helm import found_helm, one
from tests.kube.operators import NAMESPACE
from tests.tiny_bundle import rows, write_tiny_bundle

from dovetail.pool import TailApp
from dovetail_cli.ray_pool import free_port
from dovetail_edge import Credentials, Session
from dovetail_operator.world import dedicated_name
from dovetail_serving.intake import token_digest

SHARED = f"/{NAMESPACE}/default"
OWN = dedicated_name("page-orientation")
DEDICATED = f"/vision/{OWN}"
MIB = 1 << 20


def loopback():
    """An address of loopback that no other test has."""
    return f"127.{random.randrange(1, 255)}.{random.randrange(256)}.{random.randrange(2, 255)}"


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    with running_names(tmp_path_factory.mktemp("dns")) as found:
        yield found


@pytest.fixture(scope="module")
def gateway(names, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gateway")
    with running_gateway(folder, names, free_port()) as found:
        yield found


@pytest.fixture(scope="module")
def make_upstream(gateway):
    made = []

    def make():
        made.append(Upstream(loopback(), gateway.upstream_port))
        return made[-1]

    yield make
    for upstream in made:
        upstream.stop()


@pytest.fixture(scope="module")
def shared(gateway, make_upstream):
    """The upstream of the pool that all share."""
    upstream = make_upstream()
    gateway.names.set("default", NAMESPACE, upstream.address)
    until(lambda: gateway.ask(f"{SHARED}/").status == 200, "the shared pool to be found")
    return upstream


@pytest.fixture(scope="module")
def dedicated(gateway, make_upstream):
    """The upstream of a pool that one deployment has to itself."""
    upstream = make_upstream()
    gateway.names.set(OWN, "vision", upstream.address)
    until(lambda: gateway.ask(f"{DEDICATED}/").status == 200, "the pool of its own to be found")
    return upstream


@pytest.mark.parametrize(
    ("prefix", "kind"), [(SHARED, "shared"), (DEDICATED, "dedicated")], ids=["shared", "dedicated"]
)
@pytest.mark.parametrize(
    "path",
    ["/", "/v2/models/page", "/ns--page--0123/v2/models/page/infer?a=b&c=%20d", "/a//b/../c"],
)
def test_a_request_reaches_the_pool_that_its_path_names_without_that_part(
    gateway, request, prefix, kind, path
):
    """Verify that all behind the prefix arrives as it was sent, and so do the headers."""
    upstream = request.getfixturevalue(kind)
    sent = {"Authorization": "Bearer t", "traceparent": "00-1-2-03", "Dovetail-Plan": "3"}
    answer = gateway.ask(prefix + path, headers=sent)

    assert answer.status == 200
    assert answer.headers["dovetail-plan"] == "7"
    assert (answer.seen["upstream"], answer.seen["path"]) == (upstream.address, path)
    seen = answer.seen["headers"]
    assert {name: seen[name.lower()] for name in sent} == sent


def test_only_the_authority_and_the_name_of_the_chart_are_believed(gateway, tmp_path):
    """Verify that the certificate which the chart makes is one that verification needs."""
    with gateway.tls() as sock:
        assert sock.version() in ("TLSv1.2", "TLSv1.3")
    with gateway.tls(host="dovetail-gateway.dovetail-system.svc.cluster.local"):
        pass
    with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
        gateway.tls(ca=Authority(tmp_path).ca_file)
    with pytest.raises(ssl.SSLCertVerificationError, match="elsewhere"):
        gateway.tls(host="elsewhere.example")


def test_plain_http_is_refused(gateway, shared):
    """Verify that nothing is answered, and no pool reached, without TLS."""
    asked = shared.connections
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as sock:
        sock.sendall(f"GET {SHARED}/ HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        try:
            said = sock.recv(1000)
        except ConnectionResetError:
            said = b""
    assert b"HTTP/" not in said
    assert shared.connections == asked


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v2/models/page/infer",
        SHARED,  # no `/` behind it
        f"/{NAMESPACE}/other/v2",
        "/vision/default/v2",  # shared pools are in the release's namespace
        "/vision/default-pool-0123456/v2",
        "/vision/default-pool-012345678/v2",
        f"/{NAMESPACE.upper()}/default/v2",
        f"/{NAMESPACE}/default.evil/v2",
        f"//{NAMESPACE}/default/v2",
        f"/{NAMESPACE}%2Fdefault/v2",
        f"/../{NAMESPACE}/default/v2",
    ],
)
def test_an_unknown_pool_is_said_to_be_unknown(gateway, shared, path):
    """Verify that the body says what a path looks like, and that it is no answer of a tail."""
    answer = gateway.ask(path)

    assert (answer.status, answer.headers["content-type"]) == (404, "text/plain")
    assert answer.body == b"gateway: no such pool; a path begins with /NAMESPACE/POOL/\n"
    assert not [name for name in answer.headers if name.startswith("dovetail")]


@pytest.mark.parametrize("path", ["/-/routes", "/-/healthz", "/-", "//-/routes", "/%2d/routes"])
def test_what_ray_tells_of_all_deployments_is_told_nobody(gateway, shared, path):
    """Verify that Ray's own pages, which ask for no token, are not reached from outside."""
    asked = shared.connections
    answer = gateway.ask(SHARED + path)
    assert (answer.status, answer.body) == (403, b"gateway: refused\n")
    assert shared.connections == asked
    assert gateway.ask(f"{SHARED}/-x/v2").status == 200


def test_a_pool_that_comes_goes_and_moves_is_found_without_a_restart(gateway, make_upstream):
    """Verify that a name's address is what it is now, for a pool of one deployment's own."""
    name, asked = dedicated_name("late"), "nobody yet"
    path = f"/robots/{dedicated_name('late')}/v2"
    answer = gateway.ask(path)
    assert (answer.status, answer.body) == (503, b"gateway: the pool cannot be reached\n")

    for _ in range(2):  # it comes, then it is replaced
        upstream = make_upstream()
        gateway.names.set(name, "robots", upstream.address)

        def answered(upstream=upstream):
            nonlocal asked
            answer = gateway.ask(path)
            asked = answer.seen["upstream"] if answer.status == 200 else answer.body
            return asked == upstream.address

        until(answered, f"{upstream.address} to be asked, and not {asked}")

    gateway.names.set(name, "robots", None)
    until(lambda: gateway.ask(path).status == 503, "the pool to be gone")


def test_a_shared_pool_is_followed_to_another_address(gateway, shared, make_upstream):
    """Verify it while requests go on: each is answered, by the one or by the other."""
    replaced = make_upstream()
    seen = [gateway.ask(f"{SHARED}/").seen["upstream"]]
    gateway.names.set("default", NAMESPACE, replaced.address)
    try:
        while seen[-1] != replaced.address:
            answer = gateway.ask(f"{SHARED}/")
            assert answer.status == 200
            seen.append(answer.seen["upstream"])
            assert len(seen) < 5000
    finally:
        gateway.names.set("default", NAMESPACE, shared.address)
        until(lambda: gateway.ask(f"{SHARED}/").seen["upstream"] == shared.address, "the way back")
    assert sorted(set(seen)) == sorted({shared.address, replaced.address})


def test_a_pool_stays_where_it_was_while_no_name_server_answers(gateway, shared):
    """Verify that names which cannot be asked for take no pool away, and are asked for again."""
    gateway.names.process.send_signal(signal.SIGSTOP)
    try:
        end = time.monotonic() + 6  # an answer is believed for 1 s here, a silence found after 4
        while time.monotonic() < end:
            assert gateway.ask(f"{SHARED}/").status == 200
            time.sleep(0.1)
    finally:
        gateway.names.process.send_signal(signal.SIGCONT)
    assert gateway.ask(f"{SHARED}/").seen["upstream"] == shared.address


def test_what_a_pool_fails_at_is_said_in_plain_text(gateway, make_upstream):
    """Verify the words for a pool that hangs up, breaks off, or listens no more."""
    name, upstream = dedicated_name("frail"), make_upstream()
    prefix = f"/robots/{name}"
    gateway.names.set(name, "robots", upstream.address)
    until(lambda: gateway.ask(f"{prefix}/").status == 200, "the pool to be found")

    answer = gateway.ask(f"{prefix}/hang-up")
    assert (answer.status, answer.body) == (502, b"gateway: the pool broke off its answer\n")
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        gateway.ask(f"{prefix}/break")
    upstream.stop()
    answer = gateway.ask(f"{prefix}/")
    assert (answer.status, answer.body) == (503, b"gateway: the pool cannot be reached\n")


def test_large_bodies_pass_both_ways_unchanged(gateway, shared, dedicated):
    """Verify it by content: bytes of every value, far more than any buffer on the way holds."""
    body = os.urandom(24 * MIB)
    for prefix in (SHARED, DEDICATED):
        assert gateway.ask(f"{prefix}/echo", body).body == body


def test_a_body_of_unknown_length_passes(gateway, shared):
    pieces = [os.urandom(100_000) for _ in range(20)]
    connection = gateway.connection()
    connection.request("POST", f"{SHARED}/v2", iter(pieces), encode_chunked=True)
    answer = connection.getresponse().read()
    connection.close()
    assert hashlib.sha256(b"".join(pieces)).hexdigest().encode() in answer


def test_a_body_that_is_too_large_is_refused_before_it_is_sent(gateway, shared):
    connection = gateway.connection()
    connection.putrequest("POST", f"{SHARED}/v2")
    connection.putheader("Content-Length", str(256 * MIB + 1))
    connection.endheaders()
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (413, b"gateway: the body exceeds 256 MiB\n")
    connection.close()


def test_headers_that_are_too_long_are_refused(gateway, shared):
    """Verify where the limit is: what Ray takes passes, and the rest never reaches a pool."""
    assert gateway.ask(f"{SHARED}/", headers={"x": "a" * 14_000}).status == 200
    asked = shared.connections
    assert gateway.ask(f"{SHARED}/", headers={"x": "a" * 17_000}).status == 400
    assert shared.connections == asked


def test_a_slow_upload_holds_up_nobody_else(gateway, shared):
    """Verify that a body which comes in drops arrives, while others are answered meanwhile."""
    body, answered = os.urandom(6000), []
    connection = gateway.connection()
    connection.putrequest("POST", f"{SHARED}/v2")
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders()
    for start in range(0, len(body), 1000):
        connection.send(body[start : start + 1000])
        time.sleep(0.1)
        answered.append(gateway.ask(f"{SHARED}/").status)
    answer = connection.getresponse().read()
    connection.close()

    assert answered == [200] * 6
    assert hashlib.sha256(body).hexdigest().encode() in answer


def test_many_requests_go_over_one_connection(gateway, shared):
    """Verify that a device's connection is kept, and so are those behind the gateway."""
    before, connection = shared.connections, gateway.connection()
    socket_of = connection.sock
    for index in range(40):
        answer = gateway.ask(f"{SHARED}/echo", os.urandom(2000 + index), over=connection)
        assert answer.status == 200
        assert connection.sock is socket_of
    connection.close()
    assert shared.connections - before < 10


def test_a_renewed_certificate_is_shown_without_a_failed_request(gateway, shared, tmp_path):
    """Verify that who is being answered is answered, and who comes next is shown the new one."""
    before = gateway.serial()
    kept, failed, stop = gateway.connection(), [], threading.Event()
    shared.begun.clear()
    shared.go_on.clear()
    kept.request("GET", f"{SHARED}/wait")
    assert shared.begun.wait(30)
    old, new = gateway.ca_file.read_bytes(), found_helm(tmp_path).template()
    held = one(new, "Secret", "dovetail-gateway-tls")["data"]

    def ask():
        while not stop.is_set():
            try:
                if gateway.ask(f"{SHARED}/").status != 200:
                    failed.append("status")
            except ssl.SSLCertVerificationError:
                continue  # the authority changes with it in this test, at another moment
            except OSError as error:
                failed.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    gateway.replace_certificate(held)
    assert gateway.ca_file.read_bytes() != old

    def serial():
        try:
            return gateway.serial()
        except ssl.SSLCertVerificationError:  # the old one still
            return before

    until(lambda: serial() != before, "another certificate")
    shared.go_on.set()
    assert kept.getresponse().status == 200
    kept.close()
    stop.set()
    asking.join()
    assert not failed


def test_who_is_being_answered_is_answered_before_the_gateway_ends(names, make_upstream, tmp_path):
    """Verify that TERM ends it with 0, after the requests under way and not before."""
    port = make_upstream().port
    upstream = Upstream(loopback(), port)
    names.set("default", NAMESPACE, upstream.address)
    with running_gateway(tmp_path, names, port) as gateway:
        until(lambda: gateway.ask(f"{SHARED}/").status == 200, "the pool to be found")
        connection = gateway.connection()
        connection.request("GET", f"{SHARED}/wait")
        assert upstream.begun.wait(30)
        gateway.process.send_signal(signal.SIGTERM)

        def closed():
            try:
                gateway.connection().close()
            except OSError:
                return True
            return False

        until(closed, "new connections to be refused")
        assert gateway.process.poll() is None
        upstream.go_on.set()
        assert connection.getresponse().status == 200
        connection.close()
        assert gateway.process.wait(30) == 0
    upstream.stop()


@pytest.mark.ray
def test_a_device_and_its_tail_meet_behind_the_gateway(ray_pool, names, tmp_path):
    """Verify a real edge and a real tail: answers are the whole model's, 401 is the tail's."""
    tiny, name = write_tiny_bundle(tmp_path / "bundle", seed=11), "gateway/tiny"
    plan = tiny.plan("cut1", generation=1, deployment=name, pinned=True, deadline=20.0)
    tokens = {"camera": token_digest("a token for the gateway")}
    app = TailApp(
        name,
        str(tiny.bundle.path),
        tiny.bundle.digest,
        {"camera": plan},
        tokens=tokens,
        actor_options={"num_cpus": 0.1},
    )
    ray_pool.serve(app)
    names.set("rays", NAMESPACE, ray_pool.pool.host)
    path = f"/{NAMESPACE}/rays/{app.application}"
    values = {"pools": [{"name": "rays"}], "gateway": {"tls": {"dnsNames": ["localhost"]}}}
    with running_gateway(tmp_path, names, ray_pool.pool.port, **values) as gateway:
        until(lambda: gateway.ask(f"{path}/v2/health/live").status == 200, "the pool")
        endpoint = f"https://localhost:{gateway.port}/{NAMESPACE}/rays"
        credentials = Credentials("a token for the gateway", gateway.ca_file)
        with Session(tiny.bundle, plan, endpoint=endpoint, credentials=credentials) as session:
            answers = [session.infer_detailed(rows(2, seed=seed)) for seed in range(5)]
        refused = gateway.ask(f"{path}/dovetail/plan")

    for seed, answer in enumerate(answers):
        assert (answer.rung, answer.degraded) == ("cut1", False)
        for output, want in tiny.whole(rows(2, seed=seed)).items():
            np.testing.assert_allclose(answer.outputs[output], want, rtol=1e-4, atol=1e-5)
    assert refused.status == 401
    assert "dovetail-error" in refused.headers
    ray_pool.drop(app)
