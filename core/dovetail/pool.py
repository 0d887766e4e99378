"""A pool's Ray Serve config, composed from what should run in it.

A pool is a Ray cluster that serves tails. What runs there is one declarative document, Serve's
config, put whole: `dovetail up` puts it to the Ray it started, the operator puts it into a
RayService. Composing it is pure, so both put the same, a test can read it, and applying it twice
changes nothing.

One bundle digest is one application with its own route: a new version stands beside the old one,
and a change of plan or token alone touches only `user_config`, which Serve hands to the running
replicas without a restart. So does what the ledger knows: it follows from the tails, comes as
`user_config`, and a deployment that comes, goes or changes its version never restarts it.

Reference: Ray Serve config file schema (ServeDeploySchema).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from dovetail.plan import Plan, application_name

LEDGER_APPLICATION: Final = "dovetail-ledger"
TAIL_DEPLOYMENT: Final = "Tail"
LEDGER_DEPLOYMENT: Final = "Ledger"

# Serve counts connections here, not computations: a slow upload must not take a place from a
# request that is ready to run. The tail bounds its own queue.
_CONNECTIONS = 1000

# Replicas serve from their main event loop: the tail computes in threads of its own, and a hop
# between two loops costs every request about as much as the whole empty handler. Access logs
# would be a write a request.
SERVE_ENVIRONMENT: Final[Mapping[str, str]] = {
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "100",
    "RAY_SERVE_LOG_TO_STDERR": "0",
}


@dataclass(frozen=True, slots=True)
class Replicas:
    """How many replicas a tail has; more than the least only while requests wait.

    Attributes:
        least: always running.
        most: at most running.
        ongoing: requests in flight per replica that autoscaling aims at.
    """

    least: int = 1
    most: int = 1
    ongoing: float = 2.0


@dataclass(frozen=True, slots=True)
class TailApp:
    """One bundle of one deployment, served.

    Attributes:
        deployment: `<namespace>/<name>`.
        bundle: the bundle's folder, as the replicas see it.
        digest: the bundle's manifest digest.
        plans: by device class.
        tokens: device class -> sha256 hex of its bearer token; empty leaves the tail open.
        settings: further arguments of `dovetail_serving.tail.TailArgs`.
        replicas: how many.
        actor_options: Ray actor options of a replica, such as `num_cpus` or `num_gpus`.
    """

    deployment: str
    bundle: str
    digest: str
    plans: Mapping[str, Plan]
    tokens: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    replicas: Replicas = Replicas()
    actor_options: Mapping[str, Any] = field(default_factory=lambda: {"num_cpus": 0.5})

    @property
    def application(self) -> str:
        """Name of the Serve application; with a `/` before it, its route."""
        return application_name(self.deployment, self.digest)


@dataclass(frozen=True, slots=True)
class LedgerApp:
    """The pool's ledger; whom it serves and which bundles it hands out follow from the tails.

    Attributes:
        operator_token: sha256 hex of the token that may read windows; empty leaves them open.
        settings: further arguments of `dovetail_serving.ledger.LedgerArgs`.
    """

    operator_token: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


def serve_config(
    tails: Iterable[TailApp], ledger: LedgerApp, *, host: str, port: int, everywhere: bool = False
) -> dict[str, Any]:
    """The Serve config of a pool.

    Args:
        tails: the tails; order does not matter.
        ledger: the ledger.
        host: address the ingress binds.
        port: port the ingress binds.
        everywhere: an ingress on every node, as a cluster wants it; otherwise on the head only.

    Returns:
        A `ServeDeploySchema` as JSON-able values; the same for the same arguments.
    """
    ordered = sorted(tails, key=lambda tail: tail.application)
    return {
        "proxy_location": "EveryNode" if everywhere else "HeadOnly",
        "http_options": {"host": host, "port": port},
        "logging_config": {"enable_access_log": False, "encoding": "TEXT", "log_level": "INFO"},
        "applications": [*map(_tail, ordered), _ledger(ledger, ordered)],
    }


def _tail(tail: TailApp) -> dict[str, Any]:
    plans = {
        name: plan.model_dump(mode="json", by_alias=True)
        for name, plan in sorted(tail.plans.items())
    }
    arguments = {
        **tail.settings,
        "bundle": tail.bundle,
        "deployment": tail.deployment,
        "digest": tail.digest,
    }
    deployment = {
        "name": TAIL_DEPLOYMENT,
        "user_config": {"plans": plans, "tokens": dict(sorted(tail.tokens.items()))},
        "ray_actor_options": dict(tail.actor_options),
        **_scale(tail.replicas),
        **_lifecycle(),
    }
    return _application(
        tail.application,
        f"/{tail.application}",
        "dovetail_serving.tail:build",
        arguments,
        deployment,
    )


def _ledger(ledger: LedgerApp, tails: Iterable[TailApp]) -> dict[str, Any]:
    known = {"operator_token": ledger.operator_token, "deployments": _deployments(tails)}
    deployment = {
        "name": LEDGER_DEPLOYMENT,
        "num_replicas": 1,
        "user_config": known,
        "ray_actor_options": {"num_cpus": 0.1},
        **_lifecycle(),
    }
    return _application(
        LEDGER_APPLICATION,
        f"/{LEDGER_APPLICATION}",
        "dovetail_serving.ledger:build",
        ledger.settings,
        deployment,
    )


def _deployments(tails: Iterable[TailApp]) -> dict[str, dict[str, dict[str, str]]]:
    """What the ledger knows of each deployment: its tokens, its bundles, where devices begin.

    A device begins at the application of the bundle that its class's plan names; other versions
    only stay for devices that have not changed over.
    """
    found: dict[str, dict[str, dict[str, str]]] = {}
    for tail in tails:
        known = found.setdefault(tail.deployment, {"tokens": {}, "bundles": {}, "placement": {}})
        known["tokens"] |= dict(sorted(tail.tokens.items()))
        known["bundles"][tail.digest] = tail.bundle
        known["placement"] |= {
            name: tail.application
            for name, plan in sorted(tail.plans.items())
            if plan.bundle == tail.digest
        }
    return found


def _application(
    name: str,
    route: str,
    builder: str,
    arguments: Mapping[str, Any],
    deployment: Mapping[str, Any],
) -> dict[str, Any]:
    return {
        "name": name,
        "route_prefix": route,
        "import_path": builder,
        "args": dict(arguments),
        "deployments": [dict(deployment)],
    }


def _scale(replicas: Replicas) -> dict[str, Any]:
    if replicas.least == replicas.most:
        return {"num_replicas": replicas.least}
    return {
        "autoscaling_config": {
            "min_replicas": replicas.least,
            "max_replicas": replicas.most,
            "target_ongoing_requests": replicas.ongoing,
        }
    }


def _lifecycle() -> dict[str, Any]:
    """A dead replica is noticed within a second; a stopping one finishes what it took."""
    return {
        "max_ongoing_requests": _CONNECTIONS,
        "health_check_period_s": 1.0,
        "health_check_timeout_s": 10.0,
        "graceful_shutdown_wait_loop_s": 0.5,
        "graceful_shutdown_timeout_s": 20.0,
    }
