"""What is known of a deployment's bundle and plans, as its ConfigMap keeps it: the durable truth.

An operator that starts knows nothing but what the cluster says. So all that it decided and cannot
find out again lies in one ConfigMap a deployment: which bundle the spec became, that bundle's
description and costs without what only runtimes read, and the plans in force, whose generation must
never be used twice. Edges mount the same object and boot from it.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Self

from pydantic import ValidationError

from dovetail.api import HybridDeployment
from dovetail.bundle import BundleConfig
from dovetail.errors import BundleError
from dovetail.ladder import CostProfile
from dovetail.layout import canonical_json
from dovetail.plan import Plan
from dovetail_operator.client import Json
from dovetail_operator.names import child
from dovetail_operator.rollout import Stand

_STAND: Final = "rollout.json"
_MADE_FROM: Final = {"model", "inputs", "calibration", "quality", "wire"}


def partition_hash(deployment: HybridDeployment) -> str:
    """Identity of what a bundle is made from: the fields of the spec that change its bytes.

    What is at its default is left out, so that a release with one more field makes no bundle anew.
    """
    spec = deployment.spec
    made_from = spec.model_dump(mode="json", include=_MADE_FROM, exclude_defaults=True)
    made_from |= spec.split.model_dump(include={"max_segments"}, exclude_defaults=True)
    made_from["name"] = deployment.metadata.name
    return hashlib.sha256(canonical_json(made_from)).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Record:
    """What one deployment's ConfigMap says.

    Attributes:
        partition: `partition_hash` of the spec that the bundle was made from.
        bundle: manifest digest.
        config: the bundle's description, as JSON text.
        costs: its cost profile, as JSON text.
        plans: the plan of each class, as JSON text.
        stand: what runs beside that bundle.
        model: the model's source, for people.
        made: when it was made, RFC 3339.
    """

    partition: str
    bundle: str
    config: str
    costs: str
    plans: Mapping[str, str] = field(default_factory=dict)
    stand: Stand = field(default_factory=Stand)
    model: str = ""
    made: str = ""

    @classmethod
    def of(cls, partition: str, bundle: str, config: BundleConfig, costs: CostProfile) -> Self:
        """The record of a bundle that was just made.

        Quantisation tables, weight groups and per-operator times are left out: only runtimes and
        the partitioner read them, and an object holds 1 MiB.
        """
        slim = config.model_copy(update={"affine": {}, "groups": ()})
        times = costs.model_copy(update={"ops": {}})
        return cls(
            partition,
            bundle,
            slim.model_dump_json(by_alias=True, exclude_defaults=True),
            times.model_dump_json(by_alias=True, exclude_defaults=True),
        )

    @classmethod
    def read(cls, item: Json | None) -> Self | None:
        """The record in a ConfigMap; None where there is none or it was emptied."""
        data = (item or {}).get("data") or {}
        try:
            plans = {
                key.removeprefix("plan.").removesuffix(".json"): text
                for key, text in data.items()
                if key.startswith("plan.")
            }
            return cls(
                data["partition"],
                data["bundle"],
                data["config.json"],
                data["costs.json"],
                plans,
                _stand(data.get(_STAND, "{}")),
                data.get("model", ""),
                data.get("made", ""),
            )
        except KeyError:
            return None

    def parse(self) -> tuple[BundleConfig, CostProfile]:
        """Description and costs; raises `BundleError` where a person changed them by hand."""
        try:
            return (
                BundleConfig.model_validate_json(self.config),
                CostProfile.model_validate_json(self.costs),
            )
        except ValidationError as error:
            raise BundleError(
                f"the plan's ConfigMap does not hold a bundle's description; delete it: {error}"
            ) from error

    def plan(self, name: str) -> Plan | None:
        """A class's plan; None where there is none that holds."""
        if name not in self.plans:
            return None
        try:
            return Plan.model_validate_json(self.plans[name])
        except ValidationError:
            return None

    @property
    def data(self) -> dict[str, str]:
        """What is kept of the bundle, without plans and what runs beside it."""
        return {
            "partition": self.partition,
            "bundle": self.bundle,
            "config.json": self.config,
            "costs.json": self.costs,
            "model": self.model,
            "made": self.made,
        }

    def config_map(self, owner: Json, plans: Mapping[str, Plan], ca: str | None = None) -> Json:
        """The ConfigMap that holds this record with these plans, and whom edges trust."""
        data = self.data
        data |= {f"plan.{name}.json": p.model_dump_json(by_alias=True) for name, p in plans.items()}
        if self.stand != Stand():
            data[_STAND] = self.stand.model_dump_json(by_alias=True, exclude_defaults=True)
        if ca is not None:
            data["ca.crt"] = ca
        return {**child("ConfigMap", owner, "plan"), "data": data}


def _stand(text: str) -> Stand:
    try:
        return Stand.model_validate_json(text)
    except ValidationError:
        return Stand()
