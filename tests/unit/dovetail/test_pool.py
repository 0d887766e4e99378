"""The Serve config of a pool."""

import json
from pathlib import Path

import pytest
from tests.tiny_bundle import TinyBundle, write_tiny_bundle

from dovetail.pool import LedgerApp, Replicas, TailApp, serve_config


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


def tail(tiny: TinyBundle, deployment: str = "default/tiny", **more: object) -> TailApp:
    plans = {"camera": tiny.plan(deployment=deployment)}
    return TailApp(deployment, str(Path("bundles") / "tiny"), tiny.bundle.digest, plans, **more)


def config(*tails: TailApp, ledger: LedgerApp | None = None) -> dict[str, object]:
    return serve_config(tails, ledger or LedgerApp(), host="127.0.0.1", port=8000)


def test_each_bundle_is_an_application_with_its_own_route_beside_the_ledger(tiny: TinyBundle):
    """A new version must be able to stand beside the old one."""
    applications = config(tail(tiny, "b/x"), tail(tiny, "a/y"))["applications"]

    version = tiny.bundle.version
    routes = [app["route_prefix"] for app in applications]
    assert routes == [f"/a--y--{version}", f"/b--x--{version}", "/dovetail-ledger"]
    assert len({app["name"] for app in applications}) == 3


def test_the_order_tails_are_given_in_changes_nothing(tiny: TinyBundle):
    """Applying the same pool twice must be a change of nothing."""
    one, two = tail(tiny, "b/x"), tail(tiny, "a/y")

    assert json.dumps(config(one, two)) == json.dumps(config(two, one))


def test_a_new_plan_changes_user_config_alone(tiny: TinyBundle):
    """Serve restarts replicas when anything else of a deployment changes."""
    before = config(tail(tiny))["applications"][0]
    moved = TailApp(
        "default/tiny",
        before["args"]["bundle"],
        tiny.bundle.digest,
        {"camera": tiny.plan("cut2", generation=2)},
    )
    after = config(moved)["applications"][0]

    assert before.pop("deployments")[0]["user_config"] != after["deployments"][0]["user_config"]
    assert before == {key: value for key, value in after.items() if key != "deployments"}


def test_what_the_ledger_knows_follows_from_the_tails_and_is_no_argument(tiny: TinyBundle):
    """An argument that changes would restart it, and its windows would be lost."""
    tokens = {"camera": "ab" * 32}
    old = TailApp("default/tiny", "bundles/old", "sha256:" + "0" * 64, tail(tiny).plans, tokens)
    alone = config(tail(tiny, tokens=tokens))["applications"][-1]
    both = config(tail(tiny, tokens=tokens), old)["applications"][-1]

    assert alone["args"] == both["args"]
    assert both["deployments"][0]["user_config"]["deployments"] == {
        "default/tiny": {
            "tokens": tokens,
            "bundles": {
                tiny.bundle.digest: str(Path("bundles") / "tiny"),
                old.digest: "bundles/old",
            },
            "placement": {"camera": tail(tiny).application},  # whose bundle the plan names
        }
    }


def test_autoscaling_is_asked_for_only_where_replicas_may_vary(tiny: TinyBundle):
    """A fixed number and an autoscaling block exclude each other in Serve's schema."""
    fixed = config(tail(tiny))["applications"][0]["deployments"][0]
    varying = config(tail(tiny, replicas=Replicas(1, 3, 4.0)))["applications"][0]["deployments"][0]

    assert fixed["num_replicas"] == 1
    assert "autoscaling_config" not in fixed
    assert varying["autoscaling_config"] == {
        "min_replicas": 1,
        "max_replicas": 3,
        "target_ongoing_requests": 4.0,
    }
    assert "num_replicas" not in varying


def test_the_config_is_what_serves_own_schema_accepts(tiny: TinyBundle):
    """The config is checked against the installed Ray rather than against our idea of it."""
    schema = pytest.importorskip("ray.serve.schema").ServeDeploySchema
    ledger = LedgerApp("cd" * 32)
    made = config(tail(tiny, replicas=Replicas(1, 2), tokens={"camera": "ab" * 32}), ledger=ledger)

    parsed = schema.model_validate(json.loads(json.dumps(made)))

    assert [app.name for app in parsed.applications] == [a["name"] for a in made["applications"]]
