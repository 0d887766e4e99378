"""Steady requests from a node, and what became of each."""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster.cluster import Cluster
from tests.cluster.example import NAMESPACE
from tests.cluster.service import Service
from tests.kube.apiserver import Json

_DRIVER = Path(__file__).with_name("driver.py")


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests under way.

    Attributes:
        out: file of the driver, a line a request.
    """

    out: Path

    def all(self, since: float = 0.0) -> list[dict[str, Any]]:
        """Every request that has ended and began after a time of the system clock."""
        lines = self.out.read_text().splitlines() if self.out.is_file() else []
        parsed = [json.loads(line) for line in lines if line.endswith("}")]
        return [one for one in parsed if one["at"] >= since]

    def failed(self, since: float = 0.0) -> list[dict[str, Any]]:
        """Those that failed."""
        return [one for one in self.all(since) if "error" in one]

    def more(self, count: int, seconds: float = 60.0) -> list[dict[str, Any]]:
        """Wait for that many requests from now on; returns them."""
        since, end = time.time(), time.monotonic() + seconds
        while len(found := self.all(since)) < count:
            assert time.monotonic() < end, f"{len(found)} of {count} requests in {seconds:.0f} s"
            time.sleep(0.1)
        return found


def clouds(request: Mapping[str, Any]) -> bool:
    """Whether the cloud answered a request."""
    return request.get("rung") not in {None, "edge"} and not request["degraded"]


def edge_service(cluster: Cluster, deployment: str) -> Json:
    """The Service through which apps on a node reach their edge."""
    path = f"/api/v1/namespaces/{NAMESPACE}/services"
    (found,) = [
        item
        for item in cluster.request("GET", path)["items"]
        if item["metadata"]["labels"].get("app.kubernetes.io/instance") == deployment
    ]
    return found


@contextmanager
def steady(
    cluster: Cluster,
    deployment: str,
    rows: Path,
    *,
    rate: float = 4.0,
    address: str | None = None,
) -> Iterator[Traffic]:
    """Send requests meanwhile, from the edge node through the edge's Service.

    Args:
        cluster: the cluster.
        deployment: name of the deployment, and of the model it serves.
        rows: npz with the inputs as `x`.
        rate: requests a second.
        address: `host:port` to ask instead from this machine, outside every node.
    """
    out = cluster.folder / f"traffic-{time.time_ns()}.jsonl"
    service = edge_service(cluster, deployment)
    with nullcontext(([], address)) if address else cluster.asked(service) as (inside, host):
        command = [*inside, sys.executable, str(_DRIVER), host, deployment, str(rows)]
        driver = Service([*command, str(rate), str(out)], out.with_suffix(".log"))
        driver.start()
        try:
            yield Traffic(out)
        finally:
            driver.stop()
