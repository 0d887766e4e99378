"""The operator as a process: `python -m dovetail_operator`."""

import argparse
import logging
import os
import signal
import socket
import sys
import uuid
from pathlib import Path

from prometheus_client import REGISTRY

from dovetail import telemetry
from dovetail.errors import DovetailError
from dovetail_operator import logs
from dovetail_operator.client import connect
from dovetail_operator.config import Config
from dovetail_operator.exposition import Deployments
from dovetail_operator.health import HealthServer
from dovetail_operator.lease import Terms
from dovetail_operator.process import Operator

log = logging.getLogger("dovetail.operator")


def main() -> int:
    """Run until told to end; returns the exit code."""
    args = _parser().parse_args()
    logs.setup(args.log_level)
    try:
        telemetry.setup("dovetail-operator")
        config = Config.load(args.config)
        operator = Operator(
            connect(args.kubeconfig),
            config,
            namespace=args.watch_namespace,
            identity=f"{os.environ.get('POD_NAME', socket.gethostname())}_{uuid.uuid4().hex[:8]}",
            terms=Terms.lasting(args.lease_seconds),
        )
    except DovetailError as error:
        log.error("%s", error, extra={"code": error.code})  # noqa: TRY400  the message says it all
        return error.exit_code
    hybrids = operator.world.stores["HybridDeployment"]
    REGISTRY.register(Deployments(hybrids, lambda: operator.lease.held))
    health = HealthServer(
        args.host,
        args.port,
        alive=lambda: operator.world.healthy,
        ready=lambda: operator.world.synced,
    )
    health.start()
    log.info("started", extra={"port": health.port, "lease": operator.lease.identity})
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: operator.stop())
    code = operator.run()
    health.stop()
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("dovetail-operator", description=__doc__)
    add = parser.add_argument
    add("--config", type=Path, required=True, help="what the chart decides, YAML")
    add("--kubeconfig", help="a kubeconfig file (default: what a pod is given)")
    add("--watch-namespace", default="", help="the only namespace to watch (default: all)")
    add("--host", default="0.0.0.0", help="address of probes and metrics")  # noqa: S104  a pod's own address
    add("--port", type=int, default=8081, help="port of probes and metrics, 0 for a free one")
    add("--lease-seconds", type=float, default=15.0, help="how long the Lease lasts (default 15)")
    add("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
