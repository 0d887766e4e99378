"""The CustomResourceDefinition on a real API server: accepted, defaulted, explained, reported."""

import subprocess

import pytest
from tests.kube.apiserver import Refused
from tests.kube.binaries import find
from tests.kube.resources import PATH, minimal, resource

from dovetail.api import parse_manifest
from dovetail.errors import MissingTool

pytestmark = pytest.mark.kube

CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/hybriddeployments.dovetail.dev"
READY = {
    "type": "Ready",
    "status": "True",
    "observedGeneration": 1,
    "lastTransitionTime": "2026-01-31T12:00:00Z",
    "reason": "Serving",
    "message": "",
}


@pytest.fixture
def created(hybrid):
    """A resource that exists, its status not yet written."""
    made = hybrid.request("POST", PATH, resource(name="created"))
    yield made
    hybrid.request("DELETE", f"{PATH}/created")


@pytest.fixture
def kubectl(hybrid):
    """Runs kubectl against the API server."""
    try:
        program = find("kubectl").path
    except MissingTool as error:
        pytest.skip(str(error))

    def run(*arguments):
        command = [program, "--kubeconfig", hybrid.kubeconfig, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    return run


def write_status(server, status, name="created"):
    """Write a status as the operator does."""
    return server.request(
        "PATCH",
        f"{PATH}/{name}/status",
        {"apiVersion": "dovetail.dev/v1alpha1", "kind": "HybridDeployment", "status": status},
        params={"fieldManager": "operator", "force": "true", "fieldValidation": "Strict"},
        headers={"Content-Type": "application/apply-patch+yaml"},
    )


def test_the_api_server_accepts_the_definition_to_the_letter(hybrid):
    """Verify that no condition says the schema is non-structural or a name is taken."""
    conditions = {
        item["type"]: item["status"] for item in hybrid.request("GET", CRD)["status"]["conditions"]
    }

    assert conditions == {"NamesAccepted": "True", "Established": "True"}


def test_the_api_server_keeps_every_word_of_the_definition(hybrid):
    """Verify that no keyword of the schema is dropped when the definition is stored."""
    from dovetail.crd import definition

    stored = hybrid.request("GET", CRD)["spec"]["versions"][0]["schema"]

    assert stored == definition()["spec"]["versions"][0]["schema"]


def test_defaults_are_the_ones_that_one_machine_uses(hybrid):
    """Verify that a minimal resource means the same on a cluster and to `dovetail up`."""
    spec = minimal(inputs=[{"name": "x", "image": {}}])
    stored = hybrid.request("POST", PATH, resource(spec), params={"dryRun": "All"})

    ours = parse_manifest(resource(spec), "test").spec
    assert stored["spec"] == ours.model_dump(mode="json", by_alias=True, exclude_none=True)


def test_a_client_that_asks_for_no_strictness_is_warned_of_an_unknown_field(hybrid):
    """Verify that an unknown field is dropped with a warning, never silently kept."""
    answer = hybrid.client.post(
        PATH, json=resource(minimal(colour="red")), params={"dryRun": "All"}
    )

    assert "unknown field" in answer.headers["Warning"]
    assert "spec.colour" in answer.headers["Warning"]
    assert "colour" not in answer.json()["spec"]


def test_a_status_is_written_apart_and_raises_no_generation(hybrid, created):
    """Verify that a status in a manifest is ignored and one by the subresource is kept."""
    written = write_status(hybrid, {"observedGeneration": 1, "conditions": [READY]})
    hybrid.request("PUT", f"{PATH}/created", written | {"status": {"observedGeneration": 9}})

    stored = hybrid.request("GET", f"{PATH}/created")
    assert stored["status"]["observedGeneration"] == stored["metadata"]["generation"] == 1
    assert stored["status"]["conditions"] == [READY]


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ({"conditions": [READY | {"type": "Happy"}]}, "Unsupported value"),
        ({"conditions": [READY | {"status": "Yes"}]}, "Unsupported value"),
        ({"conditions": [READY | {"reason": "not one word"}]}, "PascalCase"),
        ({"conditions": [READY | {"lastTransitionTime": "now"}]}, "must be a time in UTC"),
        ({"classes": [{"name": "pi", "rung": "middle"}]}, "must be the id of a rung"),
        ({"mood": "good"}, "field not declared in schema"),
    ],
)
def test_a_status_that_is_no_status_is_refused(hybrid, created, status, message):
    """Verify that even the operator cannot write what readers do not expect."""
    with pytest.raises(Refused, match=message):
        write_status(hybrid, status)


def test_kubectl_explain_teaches_every_field(hybrid):
    """Verify that each field of spec and status that the API publishes is described."""
    schemas = hybrid.request("GET", "/openapi/v3/apis/dovetail.dev/v1alpha1")["components"]
    root = schemas["schemas"]["dev.dovetail.v1alpha1.HybridDeployment"]["properties"]

    def undescribed(schema, path):
        if not schema.get("description"):
            yield path
        for name, child in schema.get("properties", {}).items():
            yield from undescribed(child, f"{path}.{name}")
        if "items" in schema:
            yield from undescribed(schema["items"], f"{path}[]")

    assert [*undescribed(root["spec"], "spec"), *undescribed(root["status"], "status")] == []


def test_kubectl_knows_the_short_name_explains_waits_and_prints(hybrid, created, kubectl):
    """Verify the commands that a person uses, with the columns that tell the story."""
    write_status(
        hybrid,
        {
            "conditions": [READY],
            "classes": [
                {
                    "name": "default",
                    "rung": "cut3-int8",
                    "planGeneration": 4,
                    "measured": {
                        "at": "2026-01-31T12:00:00Z",
                        "shares": {"cut3-int8": 97, "edge": 3},
                        "latency": {"total": "12.3ms"},
                        "best": {"rung": "edge", "latency": "12.1ms", "by": "Model"},
                    },
                }
            ],
        },
    )

    assert "rung to keep with `adapt.mode: Manual`" in kubectl("explain", "hd.spec.split").replace(
        "\n", " "
    )
    assert "condition met" in kubectl("wait", "--for=condition=Ready", "hd/created", "--timeout=9s")
    header, row = kubectl("get", "hd").splitlines()
    assert header.split() == ["NAME", "MODE", "RUNG", "LATENCY", "READY", "AGE"]
    assert row.split()[:5] == ["created", "Split", "cut3-int8", "12.3ms", "True"]
    wide = kubectl("get", "hd", "-o", "wide").splitlines()
    assert wide[0].split()[6:] == ["REASON", "MODEL", "SHARES"]
    assert wide[1].split()[-1] == '{"cut3-int8":97,"edge":3}'
    assert "created" in kubectl("get", "dovetail")
