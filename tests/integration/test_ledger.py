"""The ledger on a real Ray Serve."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tests.integration.conftest import OPERATOR_TOKEN, Answer, Served
from tests.tiny_bundle import TinyBundle, write_tiny_bundle

from dovetail.layout import digest_of
from dovetail.pool import TailApp
from dovetail_serving.intake import token_digest

pytestmark = pytest.mark.ray

TOKEN = "a token of the closed bundle's cameras"


@dataclass
class Ledger:
    """The ledger's routes, and two bundles it hands out."""

    ray: Served
    open: TinyBundle
    closed: TinyBundle

    def get(self, path: str, **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.ray.call("GET", f"/dovetail-ledger{path}", headers=named)

    def largest(self, made: TinyBundle) -> str:
        return max(made.bundle.blobs, key=made.bundle.blobs.__getitem__)


def until(holds: Callable[[], bool]) -> None:
    """Wait for something that happens in the background."""
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.fixture(scope="module")
def ledger(ray_pool: Served, tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    folder = tmp_path_factory.mktemp("bundles")
    opened = write_tiny_bundle(folder / "open", seed=1, width=64)
    closed = write_tiny_bundle(folder / "closed", seed=2, width=64)
    ray_pool.serve(
        *(
            TailApp(
                name,
                str(made.bundle.path),
                made.bundle.digest,
                {"camera": made.plan(deployment=name)},
                tokens,
                actor_options={"num_cpus": 0.1},
            )
            for name, made, tokens in (
                ("ledger/open", opened, {}),
                ("ledger/closed", closed, {"camera": token_digest(TOKEN)}),
            )
        )
    )
    return Ledger(ray_pool, opened, closed)


def test_every_blob_of_a_bundle_comes_whole_by_its_digest(ledger: Ledger):
    """A device can fetch what it needs and check what it got."""
    for digest in (ledger.open.bundle.digest, *ledger.open.bundle.blobs):
        answer = ledger.get(f"/v1/blobs/{digest}")

        assert answer.status == 200
        assert digest_of(answer.body) == digest


def test_a_blob_can_be_fetched_in_ranges(ledger: Ledger):
    """A broken download goes on where it stopped."""
    digest = ledger.largest(ledger.open)
    whole = ledger.open.bundle.read(digest)
    half = len(whole) // 2

    first = ledger.get(f"/v1/blobs/{digest}", Range=f"bytes=0-{half - 1}")
    rest = ledger.get(f"/v1/blobs/{digest}", Range=f"bytes={half}-")

    assert (first.status, rest.status) == (206, 206)
    assert rest.headers["content-range"] == f"bytes {half}-{len(whole) - 1}/{len(whole)}"
    assert first.body + rest.body == whole
    assert ledger.get(f"/v1/blobs/{digest}", Range=f"bytes={len(whole)}-").status == 416


@pytest.mark.parametrize(
    "digest", ["sha256:" + "0" * 64, "..%2F..%2Findex.json", "index.json", "sha256:"]
)
def test_only_blobs_of_configured_bundles_are_handed_out(ledger: Ledger, digest: str):
    """No path outside a bundle can be named."""
    assert ledger.get(f"/v1/blobs/{digest}", Authorization=f"Bearer {TOKEN}").status == 404


def test_a_blob_of_a_closed_bundle_needs_a_token_of_that_bundle(ledger: Ledger):
    """The same credential as for inference."""
    path = f"/v1/blobs/{ledger.largest(ledger.closed)}"

    assert ledger.get(path).status == 404  # what is open is looked through, and nothing else
    assert ledger.get(path, Authorization="Bearer wrong").status == 404
    assert ledger.get(path, Authorization=f"Bearer {TOKEN}").status == 200


def test_a_device_that_knows_only_its_token_is_told_where_to_begin(ledger: Ledger):
    """The application it is told answers with its plan."""
    answer = ledger.get("/v1/placement", Authorization=f"Bearer {TOKEN}")

    place = answer.json()
    assert place == {
        "deployment": "ledger/closed",
        "deviceClass": "camera",
        "application": f"ledger--closed--{ledger.closed.bundle.version}",
    }
    plan = ledger.ray.call(
        "GET",
        f"/{place['application']}/dovetail/plan",
        headers={"Authorization": f"Bearer {TOKEN}"},
    )
    assert plan.json()["bundle"] == ledger.closed.bundle.digest
    robot = ledger.get("/v1/placement", Dovetail_Device_Class="robot")
    assert (robot.status, robot.headers["dovetail-error"]) == (404, "UnknownPlan")


def test_a_device_that_says_who_it_is_is_counted(ledger: Ledger):
    """By the tail it talked to, with the version of that tail and the time."""
    tail = f"/ledger--closed--{ledger.closed.bundle.version}/dovetail/plan"
    for device in ("porch", "no good name", "x" * 64):
        headers = {"Authorization": f"Bearer {TOKEN}", "Dovetail-Device": device}
        assert ledger.ray.call("GET", tail, headers=headers).status == 200

    def seen() -> dict[str, object]:
        return ledger.ray.ledger()["devices"].get("ledger/closed", {}).get("camera", {})

    until(lambda: "porch" in seen())
    assert set(seen()) == {"porch"}
    assert seen()["porch"]["version"] == ledger.closed.bundle.version


def test_what_the_ledger_knows_changes_without_a_restart(ledger: Ledger, tmp_path: Path):
    """Another deployment, another token: the same process, and the windows it had."""
    (before,) = ledger.ray.replica_pids("dovetail-ledger")
    made = write_tiny_bundle(tmp_path / "other", seed=3)
    tail = TailApp(
        "ledger/other",
        str(made.bundle.path),
        made.bundle.digest,
        {"camera": made.plan(deployment="ledger/other")},
        {"camera": token_digest("first")},
        actor_options={"num_cpus": 0.1},
    )
    ledger.ray.serve(tail)
    assert ledger.get("/v1/placement", Authorization="Bearer first").status == 200

    ledger.ray.serve(replace(tail, tokens={"camera": token_digest("second")}))

    until(lambda: ledger.get("/v1/placement", Authorization="Bearer second").status == 200)
    place = ledger.get("/v1/placement", Authorization="Bearer first")
    assert place.json().get("deployment") != "ledger/other"
    assert ledger.ray.replica_pids("dovetail-ledger") == [before]
    ledger.ray.drop(tail)


def test_windows_are_the_operators_alone(ledger: Ledger):
    """A device's token does not open them."""
    assert ledger.get("/v1/windows").status == 401
    assert ledger.get("/v1/windows", Authorization=f"Bearer {TOKEN}").status == 401
    answer = ledger.get("/v1/windows?seconds=5", Authorization=f"Bearer {OPERATOR_TOKEN}")
    assert answer.status == 200
    assert set(answer.json()) == {"now", "windows", "contacts", "devices", "counts"}


@pytest.mark.parametrize("seconds", ["0", "121", "-1", "ten", ""])
def test_a_window_longer_than_the_ring_is_a_typed_400(ledger: Ledger, seconds: str):
    """The answer says what is possible."""
    answer = ledger.get(f"/v1/windows?seconds={seconds}", Authorization=f"Bearer {OPERATOR_TOKEN}")

    assert (answer.status, answer.headers["dovetail-error"]) == (400, "InvalidMessage")
