"""A process that owns a pool with one tail and keeps it alive, until it is killed itself."""

import json
import sys
import time
from pathlib import Path

from tests.tiny_bundle import write_tiny_bundle

from dovetail.pool import LedgerApp, TailApp, serve_config
from dovetail_cli.ray_pool import RayPool


def main(folder: Path) -> None:
    """Say where the tail is, then say each time Ray was started again."""
    tiny = write_tiny_bundle(folder / "tiny")
    tail = TailApp("default/tiny", str(tiny.bundle.path), tiny.bundle.digest, {})
    with RayPool(folder / "state") as pool:
        pool.apply(serve_config([tail], LedgerApp(), host=pool.host, port=pool.port))
        print(json.dumps({"port": pool.port, "application": tail.application}), flush=True)
        while True:
            if pool.ensure():
                print(json.dumps({"restarted": True}), flush=True)
            time.sleep(0.2)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
