"""What `helm test` asks: is the API served, does the operator stand, does the gateway answer?

Usage: check.py METRICS_URL [GATEWAY_URL [CA_FILE]]
"""

import os
import ssl
import sys
import urllib.request
from pathlib import Path

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
API = "/apis/dovetail.dev/v1alpha1"


def answer(url: str, ca: str | Path | None = None, token: str = "") -> str:
    """The answer's body; raises OSError where it is no good one."""
    context = ssl.create_default_context(cafile=ca) if url.startswith("https") else None
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310  the chart's own
    with urllib.request.urlopen(request, context=context, timeout=10) as got:  # noqa: S310
        return got.read().decode()


def main(metrics: str, gateway: str = "", ca: str = "") -> None:
    """Ask all; the first that fails ends it."""
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    account = Path(os.environ.get("ACCOUNT", ACCOUNT))
    token = (account / "token").read_text()
    kinds = answer(f"https://{host}:{port}{API}", account / "ca.crt", token)
    assert '"hybriddeployments"' in kinds, f"{API} does not list hybriddeployments: {kinds}"
    print("the API serves HybridDeployments")
    assert answer(f"{metrics}/readyz") == "ok\n", "the operator is not ready"
    print("the operator is ready")
    if gateway:
        assert answer(f"{gateway}/healthz", ca or None) == "ok\n", "the gateway is not healthy"
        print("the gateway answers over TLS")


if __name__ == "__main__":
    main(*sys.argv[1:])
