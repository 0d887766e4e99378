"""Devices that begin with an address and a token alone, against a real pool."""

import signal
from pathlib import Path

import pytest
from tests.edge_process import infer, is_right, running, until
from tests.integration.gateway import running_gateway, running_names
from tests.integration.joins import NAME, Device, Group, Load, described, follows
from tests.kube.operators import NAMESPACE
from tests.tiny_bundle import rows

from dovetail.pool import LEDGER_APPLICATION
from dovetail_cli.ray_pool import free_port

pytestmark = pytest.mark.ray


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


def test_an_address_and_a_token_are_enough_and_no_more_is_fetched_than_the_rungs_need(
    group: Group, device: Device
) -> None:
    """Placement, plan, the blobs of one segment; right answers; samples under the device's name."""
    made = group.first
    plan = group.publish(made, **group.only(made, 1))
    with running(device.flags(group.endpoint)) as edge:
        for seed in range(6):
            feed = rows(2, seed=seed)
            result = infer(edge.triton(), feed)
            assert is_right(result, made.whole(feed))
            assert result.get_response()["parameters"] == {
                "rung": "cut1",
                "degraded": False,
                "generation": plan.generation,
            }
        name = edge.status()["device"]

        def told() -> bool:
            read = group.served.ledger()
            rungs = read["windows"].get(NAME, {}).get("camera", {}).get("rungs", {})
            known = read["devices"].get(NAME, {}).get("camera", {})
            return name in known and rungs.get("cut1", {}).get("outcomes", {}).get("ok", 0) >= 6

        until(told)

    assert name == (device.state / "device").read_text()
    assert device.blobs(made) == described(made) | set(made.bundle.needs(0, 1))
    assert device.blobs(made) < set(made.bundle.blobs) | {made.bundle.digest}


def test_a_plan_that_needs_more_of_a_bundle_is_followed_once_the_rest_is_here(
    group: Group, device: Device
) -> None:
    """What was fetched stays, what is missing comes, and the process is the same."""
    made = group.first
    group.publish(made, **group.only(made, 1))
    with running(device.flags(group.endpoint)) as edge:
        few = device.blobs(made)
        plan = group.publish(made, "edge")
        until(lambda: follows(edge, plan))
        assert edge.status()["rung"] == "edge"
        feed = rows(1)
        assert is_right(infer(edge.triton(), feed), made.whole(feed))
    assert few < device.blobs(made) == described(made) | set(made.bundle.needs(0, 3))


def test_a_device_joins_through_the_gateway_of_the_chart(
    group: Group, device: Device, tmp_path: Path
) -> None:
    """HAProxy as the chart configures it, and the certificate that the chart makes."""
    made = group.first
    plan = group.publish(made)
    values = {"pools": [{"name": "rays"}], "gateway": {"externalUrl": "https://localhost"}}
    pool = group.served.pool
    with running_names(tmp_path) as names:
        names.set("rays", NAMESPACE, pool.host)
        with running_gateway(tmp_path, names, pool.port, **values) as gateway:
            prefix = f"/{NAMESPACE}/rays"
            until(lambda: gateway.ask(f"{prefix}/{LEDGER_APPLICATION}/v1/placement").status == 401)
            url = f"https://localhost:{gateway.port}{prefix}"
            with running(device.join(url, f"--ca-file={gateway.ca_file}")) as edge:
                feed = rows(2)
                result = infer(edge.triton(), feed)
                assert follows(edge, plan)
                assert is_right(result, made.whole(feed))
                assert result.get_response()["parameters"]["degraded"] is False


def test_a_device_that_joined_answers_from_its_disk_while_its_pool_is_gone(
    group: Group, device: Device
) -> None:
    """Killed, and started where nobody answers: last plan, cached bundle, right answers."""
    made = group.first
    plan = group.publish(made, "cut2")
    with running(device.flags(group.endpoint)) as edge:
        assert follows(edge, plan)
        edge.end(signal.SIGKILL)
    with running(device.flags(f"http://127.0.0.1:{free_port()}")) as edge:
        assert follows(edge, plan)
        feed = rows(1)
        result = infer(edge.triton(), feed)
        until(lambda: edge.status()["trouble"] is not None)
        assert "cannot connect" in edge.status()["trouble"]
    assert result.get_response()["parameters"]["degraded"] is True
    assert is_right(result, made.whole(feed))


def test_versions_change_under_load_and_no_request_fails_or_meets_two_of_them(
    group: Group, device: Device
) -> None:
    """There and back again: every answer is the whole model's of the version it names."""
    group.publish(group.first)
    with running(device.flags(group.endpoint)) as edge:
        with Load(edge, group.first, group.second) as load:
            for made in (group.second, group.first):
                before = load.answered[made.bundle.version]
                plan = group.publish(made)
                until(lambda plan=plan: follows(edge, plan))
                until(lambda m=made, b=before: load.answered[m.bundle.version] > b + 10)
        status = edge.status()
        assert edge.process.poll() is None
    assert not load.wrong
    assert all(load.answered.values())
    assert status["outcomes"].get("failed", 0) == 0
