"""The plan: what the operator tells an edge and a tail, and the only thing it tells them.

A plan carries everything an edge needs to answer and to choose by itself for a while: which rungs
it may use, what each costs as corrected by the pool's samples, and what to do when the cloud is
gone. `generation` is raised by the operator alone; whoever holds a plan ignores a lower one, so
plans may arrive late, twice or out of order.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from dovetail.ladder import Ladder, RungCost
from dovetail.layout import Digest
from dovetail.tensor import Document

Privacy = Literal["Open", "Masked", "Private"]
Fallback = Literal["Local", "Fail"]


class Plan(Document):
    """One device class's plan.

    Attributes:
        generation: rises with every change.
        deployment: `<namespace>/<name>`.
        bundle: manifest digest, `sha256:…`.
        device_class: whom it is for.
        default: the rung to start from.
        ladder: the rungs that are allowed, with cost corrected by samples.
        pinned: whether the edge must keep the default (`adapt.mode: Manual`).
        deadline: seconds a request may take; None where none was declared.
        fallback: `Local` answers on the device when the cloud is gone, `Fail` refuses.
        privacy: what may leave the device.
    """

    generation: int = Field(ge=1)
    deployment: str = Field(pattern=r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$")
    bundle: Digest
    device_class: str
    default: str
    ladder: tuple[RungCost, ...] = Field(min_length=1)
    pinned: bool = False
    deadline: float | None = Field(default=None, gt=0)
    fallback: Fallback = "Local"
    privacy: Privacy = "Open"

    @model_validator(mode="after")
    def _default_is_allowed(self) -> Self:
        if self.default not in self.allowed:
            raise ValueError(f"default rung {self.default!r} is not among {list(self.allowed)}")
        return self

    @property
    def allowed(self) -> tuple[str, ...]:
        """Ids of the rungs that may be used."""
        return tuple(rung.id for rung in self.ladder)

    @property
    def rungs(self) -> Ladder:
        """The allowed rungs as a ladder."""
        return Ladder(rungs=self.ladder)

    @property
    def application(self) -> str:
        """Name of the Serve application and its route: `<namespace>--<name>--<digest12>`."""
        return application_name(self.deployment, self.bundle)


def application_name(deployment: str, bundle: str) -> str:
    """Name of the Serve application that serves one bundle of one deployment."""
    return f"{deployment.replace('/', '--')}--{bundle.removeprefix('sha256:')[:12]}"


def allowed_by_privacy(privacy: Privacy, rung: RungCost, *, reads_input: bool) -> bool:
    """Whether a privacy class permits a rung.

    Args:
        privacy: `Open` permits all, `Masked` no raw input, `Private` nothing that crosses.
        rung: the rung.
        reads_input: whether a raw input is among its crossing tensors; a cut may be deep and
            still send one, such as an attention mask.
    """
    if privacy == "Open" or not rung.crosses:
        return True
    return privacy == "Masked" and not reads_input
