"""Stores stay equal to the cluster: after compaction, lost deletes, silence and a dead API server.

The Informer is driven as the operator drives it, against the real API server and etcd.
"""

import base64
import subprocess
from contextlib import contextmanager

import httpx2
import pytest
from tests.kube.apiserver import running
from tests.kube.between import between
from tests.kube.binaries import find
from tests.kube.operators import until

import dovetail_operator.informer
from dovetail.errors import MissingTool
from dovetail_operator.client import Api, connect
from dovetail_operator.informer import Informer, Kind
from dovetail_operator.store import Store

pytestmark = pytest.mark.kube

MAPS = "/api/v1/namespaces/default/configmaps"
SELECTOR = {"labelSelector": "watched=yes"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """An API server that the last test of the module may kill."""
    try:
        etcd, program = find("etcd"), find("kube-apiserver")
    except MissingTool as error:
        pytest.skip(str(error))
    with running(tmp_path_factory.mktemp("watched"), etcd, program) as server:
        yield server
        server.apiserver.process.kill()  # told to end, it would wait for open watches


@contextmanager
def informed(server, kubeconfig):
    """An Informer of three labelled ConfigMaps that was started, its store, and what it told."""
    told = []
    store = Store()
    informer = Informer(
        Api(connect(str(kubeconfig))),
        Kind("configmaps", MAPS, SELECTOR),
        store,
        lambda old, new: told.append((name(old), name(new))),
    )
    server.request("DELETE", MAPS, params=SELECTOR)
    for index in range(3):
        create(server, f"m{index}")
    informer.start()
    assert informer.synced.wait(30)
    yield informer, store, told
    informer.stop()


@pytest.fixture
def watched(server):
    """An Informer, its store, and what it told."""
    with informed(server, server.kubeconfig) as found:
        yield found


def name(item):
    return item["metadata"]["name"] if item else None


def create(server, called):
    metadata = {"name": called, "labels": {"watched": "yes"}}
    server.request("POST", MAPS, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})


def pause(server):
    """Kill the API server; etcd goes on."""
    server.apiserver.process.kill()
    server.apiserver.process.wait()


def resume(server):
    """Start the API server again, and wait until it answers."""
    with server.apiserver.log.open("ab") as sink:
        process = subprocess.Popen(server.apiserver.process.args, stdout=sink, stderr=sink)

    def ready():
        try:
            return server.client.get("/readyz").is_success
        except httpx2.TransportError:
            return False

    until(ready, "the API server")
    return process


def etcd(server, path, body):
    """A request to etcd's JSON gateway."""
    flag = next(a for a in server.apiserver.process.args if a.startswith("--etcd-servers="))
    answer = httpx2.post(f"{flag.partition('=')[2]}/v3/kv/{path}", json=body, timeout=10)
    return answer.raise_for_status().json()


def test_a_watch_sees_what_is_made_changed_and_deleted(server, watched):
    """Verify that each change is told once and that the store follows."""
    _, store, told = watched
    create(server, "m3")
    server.request("DELETE", f"{MAPS}/m0")

    until(lambda: sorted(store.keys()) == [f"default/m{i}" for i in (1, 2, 3)], "the store")
    assert told.count((None, "m3")) == 1
    assert told.count(("m0", None)) == 1


def test_a_list_of_more_than_a_page_is_whole(server):
    """Verify that a collection that takes several pages is kept whole, metadata alone too."""
    server.request("DELETE", MAPS, params=SELECTOR)
    for index in range(1100):
        create(server, f"m{index}")
    store = Store()
    informer = Informer(
        Api(connect(str(server.kubeconfig))),
        Kind("configmaps", MAPS, SELECTOR, slim=True),
        store,
        lambda old, new: None,
    )
    informer.start()
    assert informer.synced.wait(60)
    informer.stop()

    assert len(store) == 1100
    assert store.get("default/m7")["kind"] == "PartialObjectMetadata"


def test_a_kind_that_may_be_missing_is_an_empty_store_that_says_so(server):
    """Verify that a missing prerequisite does not keep the rest from starting."""
    turned = []
    informer = Informer(
        Api(connect(str(server.kubeconfig))),
        Kind("rayservices", "/apis/ray.io/v1/rayservices", optional=True),
        Store(),
        lambda old, new: None,
        lambda: turned.append(informer.absent),
    )
    informer.start()
    assert informer.synced.wait(30)
    informer.stop()

    assert turned == [True]


def test_a_kind_that_must_be_there_is_never_taken_for_an_empty_one(server):
    """Verify that a 404 on the way does not look as if everything had been deleted."""
    store = Store()
    store.put({"metadata": {"name": "kept", "resourceVersion": "1"}})
    informer = Informer(
        Api(connect(str(server.kubeconfig))),
        Kind("hybriddeployments", "/apis/dovetail.dev/v1alpha1/hybriddeployments"),
        store,
        lambda old, new: None,
    )
    informer.start()

    assert not informer.synced.wait(3)
    informer.stop()
    assert len(store) == 1


def test_a_watch_that_falls_silent_is_left_and_goes_on_where_it_was(server, tmp_path, monkeypatch):
    """Verify that a half-open connection is noticed, and that no change on it is missed."""
    monkeypatch.setattr(dovetail_operator.informer, "_SILENCE", 3.0)
    with (
        between(server, tmp_path) as proxy,
        informed(server, proxy.kubeconfig) as (informer, store, told),
    ):
        create(server, "m3")
        until(lambda: store.get("default/m3"), "an event")
        proxy.hush()
        server.request("DELETE", f"{MAPS}/m0")
        create(server, "m4")

        until(lambda: sorted(store.keys()) == [f"default/m{i}" for i in range(1, 5)], "the store")
        assert proxy.swallowed
        assert told.count(("m0", None)) == told.count((None, "m4")) == 1
        assert len(proxy.lists) == 1
        assert informer.healthy


def test_a_list_that_is_refused_is_asked_for_again_after_the_time_given(server, tmp_path):
    """Verify that 429 with Retry-After is neither an end nor an invitation to ask at once."""
    wait = 3  # longer than the first wait that is the Informer's own
    with between(server, tmp_path) as proxy:
        proxy.refusals = [wait]
        with informed(server, proxy.kubeconfig) as (_, store, _):
            assert len(store) == 3

        (refused, first), (answered, second) = proxy.lists
    assert (first, second) == (429, 200)
    assert answered - refused >= wait


def test_deletes_while_the_api_server_was_dead_are_told_after_a_410(server, watched):
    """Verify a relist after compaction: what vanished unseen is told as deleted."""
    informer, store, told = watched
    pause(server)
    key = "/registry/configmaps/default/m1"
    etcd(server, "deleterange", {"key": base64.b64encode(key.encode()).decode()})
    for _ in range(3):  # the watch cache keeps a little history; etcd shall have none of it
        last = etcd(server, "put", {"key": base64.b64encode(b"/pad").decode(), "value": ""})
    etcd(server, "compaction", {"revision": last["header"]["revision"], "physical": True})
    process = resume(server)
    try:
        until(lambda: store.get("default/m1") is None, "the delete")
        create(server, "m9")
        until(lambda: store.get("default/m9"), "the watch to go on")
        assert told.count(("m1", None)) == 1
        assert len(store) == 3
        assert informer.healthy
    finally:
        process.kill()  # told to end, it would wait for open watches
        process.wait()
