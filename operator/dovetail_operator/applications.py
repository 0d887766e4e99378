"""How a tail is, by what Ray Serve says of its application."""

from dataclasses import dataclass

from dovetail_operator.conditions import Finding


@dataclass(frozen=True, slots=True)
class Application:
    """How the tail of one version is.

    Attributes:
        status: what Ray Serve says, such as `RUNNING`.
        message: what it says besides.
        active: whether the Ray cluster it runs in is in service; KubeRay brings a new one into
            service when every application in it runs.
        reachable: whether any pod of the pool takes requests.
    """

    status: str
    message: str
    active: bool
    reachable: bool

    @property
    def running(self) -> bool:
        """Whether it serves."""
        return self.active and self.status == "RUNNING"

    @property
    def changing(self) -> bool:
        """Whether it takes over other settings, where it ran before; it serves meanwhile."""
        return self.active and self.reachable and self.status == "DEPLOYING"

    @property
    def failed(self) -> bool:
        """Whether Ray Serve could not deploy it."""
        return self.status == "DEPLOY_FAILED"


def finding(pool: str, application: Application | None, *, ran: bool) -> Finding:
    """What is said of a tail.

    Args:
        pool: name of its pool.
        application: how it is; None while its pool says nothing of it.
        ran: whether it was last said to run.
    """
    if application is None:
        return Finding("False", "TailDeploying", f"Pool {pool} is starting the tail.")
    if application.running or (ran and application.changing):
        return Finding("True", "TailRunning", f"The tail runs in pool {pool}.")
    if application.status in ("DEPLOY_FAILED", "UNHEALTHY"):
        message = f"Ray Serve says {application.status} of the tail: {application.message}"
        return Finding("False", "TailFailed", message)
    if application.status == "RUNNING":
        return Finding("False", "TailDeploying", f"The tail runs; pool {pool} is not in service.")
    return Finding("False", "TailDeploying", f"Pool {pool} is deploying the tail.")
