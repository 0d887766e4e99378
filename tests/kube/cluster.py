"""One namespace of a test: a person's and a controller's hand on the API server."""

import json

from tests.kube.controllers import JOBS, finish, merge, roll_out, serve
from tests.kube.operators import NAMESPACE, until
from tests.kube.resources import minimal, resource

CHILDREN = (
    "/apis/batch/v1/namespaces/{}/jobs",
    "/api/v1/namespaces/{}/configmaps",
    "/api/v1/namespaces/{}/secrets",
    "/api/v1/namespaces/{}/services",
    "/api/v1/namespaces/{}/serviceaccounts",
    "/apis/apps/v1/namespaces/{}/daemonsets",
)
RAYS = f"/apis/ray.io/v1/namespaces/{NAMESPACE}/rayservices"
CAMERA = {"name": "camera", "nodeSelector": {"kind": "camera"}}


class Cluster:
    """One test's namespace on the API server."""

    def __init__(self, server, namespace):
        self.server, self.namespace = server, namespace
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
        server.request("POST", "/api/v1/namespaces", body)
        self.path = f"/apis/dovetail.dev/v1alpha1/namespaces/{namespace}/hybriddeployments"

    def create(self, name="page", **spec):
        spec = minimal(**{"edge": {"classes": [CAMERA]}, **spec})
        params = {"fieldValidation": "Strict"}
        return self.server.request("POST", self.path, resource(spec, name), params=params)

    def patch(self, name="page", **spec):
        return merge(self.server, f"{self.path}/{name}", {"spec": spec})

    def get(self, name="page"):
        return self.server.request("GET", f"{self.path}/{name}")

    def delete(self, name="page"):
        self.server.request("DELETE", f"{self.path}/{name}")

    def items(self, path):
        found = self.server.request("GET", path.format(self.namespace))["items"]
        return [item for item in found if item["metadata"]["name"] != "kube-root-ca.crt"]

    def children(self):
        return [item for path in CHILDREN for item in self.items(path)]

    def job(self):
        return until(lambda: self.items(JOBS)[0], "a partition Job")

    def condition(self, kind, name="page"):
        found = self.get(name).get("status", {}).get("conditions", [])
        return next((one for one in found if one["type"] == kind), None)

    def wait(self, kind, reason, name="page"):
        """Wait for a condition's reason; returns the condition."""

        def look():
            condition = self.condition(kind, name)
            return condition if condition and condition["reason"] == reason else None

        try:
            return until(look, f"{kind} to be {reason}")
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {self.condition(kind, name)}") from None

    def serve_config(self, pool="default"):
        service = self.server.request("GET", f"{RAYS}/{pool}")
        return json.loads(service["spec"]["serveConfigV2"])

    def ready(self, made, name="page"):
        """Bring a deployment to Ready."""
        finish(self.server, self.job(), made)
        self.wait("TailAvailable", "TailDeploying", name)
        sets = until(lambda: self.items(CHILDREN[-1]), "a DaemonSet")
        roll_out(self.server, sets[0])
        self.serving(name)
        return self.wait("Ready", "Ready", name)

    def serving(self, name="page"):
        """Wait until the pool's config has a deployment's tail, and report it as running."""

        def running():
            config = self.serve_config()["applications"]
            serve(self.server, self.server.request("GET", f"{RAYS}/default"))
            return any(a["name"].startswith(f"{self.namespace}--{name}--") for a in config)

        until(running, "the tail in the pool's config")
