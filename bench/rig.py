"""The rig: a real Ray pool with real tails, a shaped link, real edge sessions.

Everything is what `dovetail up` starts, on loopback, and is ended by whoever started it.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from bench import empty
from bench.report import ROOT, Context
from dovetail.bundle import Bundle
from dovetail.ladder import CostProfile, Ladder
from dovetail.plan import Plan
from dovetail.pool import LedgerApp, TailApp, serve_config
from dovetail_cli.link import LinkSpec, parse_link
from dovetail_cli.ray_pool import RayPool, free_port

CLASS = "bench"
OPEN = "1gbit,0ms"


@contextlib.contextmanager
def pool(context: Context) -> Iterator[RayPool]:
    """A Ray pool that can import the bench's own application."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = path
    try:
        with RayPool(context.scratch / "ray", progress=context.say) as found:
            yield found
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def plan(
    bundle: Bundle, costs: CostProfile, default: str, *, generation: int = 1, **more: object
) -> Plan:
    """A plan that allows the whole ladder and pins the default, unless told otherwise."""
    return Plan.model_validate(
        {
            "generation": generation,
            "deployment": f"bench/{bundle.config.model.name}",
            "bundle": bundle.digest,
            "device_class": CLASS,
            "default": default,
            "ladder": Ladder.of(bundle.config, costs).rungs,
            "pinned": True,
            **more,
        }
    )


def deploy(ray: RayPool, served: Sequence[tuple[Bundle, Plan]], *, beside: bool = False) -> None:
    """Serve bundles, each with its plan; where asked, the empty handler beside them."""
    tails = [
        TailApp(
            deployment=plan.deployment,
            bundle=str(bundle.path.resolve()),
            digest=bundle.digest,
            plans={CLASS: plan},
        )
        for bundle, plan in served
    ]
    config = serve_config(tails, LedgerApp(), host=ray.host, port=ray.port)
    if beside:
        config["applications"].append(empty.application())
    ray.apply(config)


def endpoint(ray: RayPool) -> str:
    """The pool's ingress, unshaped."""
    return f"http://{ray.host}:{ray.port}"


class ShapedLink:
    """The shaping proxy of `dovetail up --link`, in a process of its own.

    Args:
        ray: the pool behind it.
    """

    def __init__(self, ray: RayPool) -> None:
        self._port = free_port()
        target = f"{ray.host}:{ray.port}"
        module = "dovetail_cli.shaper"
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, "--listen", str(self._port), "--to", target],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise RuntimeError("the shaping proxy did not start")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.terminate()
        self._process.wait()

    @property
    def endpoint(self) -> str:
        """The near end."""
        return f"http://127.0.0.1:{self._port}"

    def apply(self, link: str) -> LinkSpec:
        """Use another link from now on."""
        spec = parse_link(link)
        assert self._process.stdin is not None
        self._process.stdin.write(f"{link}\n")
        self._process.stdin.flush()
        time.sleep(0.1)  # the proxy does not answer; it reads the line within a loop turn
        return spec


def resident_mb(pid: int) -> float:
    """Resident megabytes of a process."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def replica_pids(ray: RayPool, application: str) -> list[int]:
    """Pids of an application's replicas."""
    deployments = ray.status()["applications"][application]["deployments"]
    return [int(replica["pid"]) for found in deployments.values() for replica in found["replicas"]]
