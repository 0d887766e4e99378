"""Routes: everything a request needs to know of its rung, worked out before the request comes.

A plan is turned into one immutable `Route` a rung when it is adopted. A request takes one pointer
at its start and keeps it, so a move (another pointer) or a new plan never changes a request under
way, and a move costs nothing.

Privacy is enforced here, in the edge, whatever a plan says: a rung that would send what the
privacy class forbids gets no route. Where that takes the default rung away, the device answers
alone if it can, and refuses otherwise; nothing is sent instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from dovetail.bundle import Bundle
from dovetail.errors import BundleError, ManifestError, PrivacyRefused
from dovetail.ladder import RungCost
from dovetail.plan import Plan, allowed_by_privacy
from dovetail.tensor import TensorSpec
from dovetail_edge.engine import Engine


@dataclass(frozen=True, slots=True)
class Route:
    """A rung of one plan on one engine.

    Attributes:
        rung: the rung with its costs.
        plan: the plan it belongs to.
        engine: the loaded segments.
        crossing: names of the crossing tensors.
        remote: declarations of the outputs the tail makes.
        path: where its rung calls go, below the endpoint.
        version: version those calls name.
    """

    rung: RungCost
    plan: Plan
    engine: Engine
    crossing: tuple[str, ...]
    remote: tuple[TensorSpec, ...]
    path: str
    version: str


@dataclass(frozen=True, slots=True)
class Routes:
    """The routes of one plan.

    Attributes:
        plan: the plan.
        by_rung: routes by rung id, those that privacy forbids left out.
        start: the route to start from; None where privacy leaves nothing to start from.
    """

    plan: Plan
    by_rung: Mapping[str, Route]
    start: Route | None

    def refusal(self) -> PrivacyRefused:
        """Why there is no route to start from."""
        return PrivacyRefused(
            f"privacy {self.plan.privacy} forbids what rung {self.plan.default!r} sends, and the "
            "plan does not let this device answer alone; allow the rung 'edge'"
        )


def check(plan: Plan, bundle: Bundle, held: Plan) -> None:
    """Check that a plan is for this bundle and for whoever follows the plan at hand.

    Raises:
        ManifestError: it is for another deployment or device class.
        BundleError: it is for another bundle, or one of its rungs is cut elsewhere.
        UnknownRung: it allows a rung the bundle does not have.
    """
    whose = (plan.deployment, plan.device_class)
    if whose != (held.deployment, held.device_class):
        raise ManifestError(
            f"plan {plan.generation} is for class {whose[1]!r} of {whose[0]!r}, this edge is "
            f"class {held.device_class!r} of {held.deployment!r}"
        )
    if plan.bundle != bundle.digest:
        raise BundleError(
            f"plan {plan.generation} is for bundle {plan.bundle}, this one is {bundle.digest}"
        )
    for rung in plan.ladder:
        known = bundle.config.rung(rung.id)
        if (known.cut, known.codec) != (rung.cut, rung.codec):
            raise BundleError(
                f"plan {plan.generation} has rung {rung.id!r} at cut {rung.cut} with codec "
                f"{rung.codec}, the bundle at cut {known.cut} with codec {known.codec}"
            )


def needs(plan: Plan) -> tuple[frozenset[int], bool]:
    """Cuts an engine must keep for a plan, and whether it must hold the whole model."""
    whole = plan.fallback == "Local" or "edge" in plan.allowed
    return frozenset(rung.cut for rung in plan.ladder), whole


def routes(plan: Plan, bundle: Bundle, engine: Engine) -> Routes:
    """Work out a plan's routes; `check` has passed and the engine has what `needs` says.

    Raises:
        UnknownRung: the bundle has no such codec for one of the crossing tensors.
        MissingTool: a codec needs a library that is not installed.
    """
    config = bundle.config
    inputs = {spec.name for spec in config.inputs}
    found: dict[str, Route] = {}
    for rung in plan.ladder:
        crossing = config.crossing(rung.cut)
        if not allowed_by_privacy(plan.privacy, rung, reads_input=not inputs.isdisjoint(crossing)):
            continue
        engine.prepare(rung.codec, crossing)
        version = f"{bundle.version}.{rung.id}"
        path = f"/{plan.application}/v2/models/{config.model.name}/versions/{version}/infer"
        remote = config.remote_outputs(rung.cut)
        found[rung.id] = Route(rung, plan, engine, crossing, remote, path, version)
    start = found.get(plan.default) or found.get("edge")
    return Routes(plan, found, start)
