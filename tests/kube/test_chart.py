"""The chart as helm renders it: checked by the real API server, read by operator and HAProxy."""

import copy
import functools
import json
import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from tests.kube.apiserver import Refused
from tests.kube.chart_values import EVERYTHING, MATRIX
from tests.kube.helm import CHART, HelmFailed, found_helm, leaves, one, pods
from tests.kube.operators import NAMESPACE

from dovetail_operator.config import Config, PoolConfig
from dovetail_operator.edges import token_secret
from dovetail_operator.world import dedicated_name

pytestmark = pytest.mark.kube

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
STRICT = {"dryRun": "All", "fieldValidation": "Strict"}


@pytest.fixture(scope="module")
def helm(tmp_path_factory):
    return found_helm(tmp_path_factory.mktemp("helm"))


@pytest.fixture(scope="module")
def rendered(helm):
    """The chart's objects for each set of values of the matrix, rendered once."""
    return functools.cache(lambda what: helm.template(**MATRIX[what]))


@pytest.fixture(scope="module")
def server(charted):
    """An API server that knows everything that the chart can make."""
    return charted.server


def collection(server, item):
    """Path of the collection that an object belongs in, as the API server says it."""
    version = item["apiVersion"]
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    kinds = server.request("GET", root)["resources"]
    (kind,) = [k for k in kinds if k["kind"] == item["kind"] and "/" not in k["name"]]
    space = f"/namespaces/{item['metadata']['namespace']}" if kind["namespaced"] else ""
    return f"{root}{space}/{kind['name']}"


def test_the_chart_has_nothing_that_lint_would_fault(helm):
    helm.run("lint", "--strict", str(CHART))
    helm.run("lint", "--strict", str(CHART), values=EVERYTHING)


@pytest.mark.parametrize("what", MATRIX)
def test_every_object_is_accepted_by_the_api_server(rendered, server, what):
    """Verify it to the letter: unknown and doubled fields are refused, as are bad values."""
    names = set()
    for item in rendered(what):
        server.request("POST", collection(server, item), item, params=STRICT)
        names.add((item["kind"], item["metadata"].get("namespace"), item["metadata"]["name"]))

    assert ("Deployment", NAMESPACE) in {name[:2] for name in names}


@pytest.mark.parametrize("what", MATRIX)
def test_the_operator_accepts_what_the_chart_tells_it(rendered, tmp_path, what):
    objects, name = rendered(what), MATRIX[what].get("fullnameOverride", "dovetail")
    file = tmp_path / "config.yaml"
    file.write_text(one(objects, "ConfigMap", f"{name}-config")["data"]["config.yaml"])
    config = Config.load(file)

    assert one(objects, "ConfigMap", config.release)
    assert config.namespace == NAMESPACE
    if config.endpoint is not None:
        assert config.endpoint.format(namespace="ns", pool="p").endswith("/ns/p")
    mounts = one(objects, "Deployment", f"{name}-operator")["spec"]["template"]["spec"]
    held = {mount["mountPath"] for mount in mounts["containers"][0]["volumeMounts"]}
    assert config.endpoint_ca is None or str(config.endpoint_ca.parent) in held


@pytest.mark.parametrize(
    ("what", "endpoint", "authority"),
    [
        (
            "as it comes",
            "https://dovetail-gateway.dovetail-system.svc:8443",
            "dovetail-gateway-tls",
        ),
        (
            "a certificate of the user",
            "https://dovetail-gateway.dovetail-system.svc:8443",
            "wildcard",
        ),
        ("a certificate of a public authority", "https://tails.example:30443", None),
        ("cert-manager and a public authority", "https://tails.example", None),
        ("a Gateway of the user", "https://gw.example", None),
        ("no gateway", None, None),
    ],
)
def test_devices_in_the_cluster_come_by_a_name_that_the_gateways_authority_signs(
    rendered, what, endpoint, authority
):
    """Verify that operator and `helm test` are given the same address and the same authority."""
    objects = rendered(what)
    config = yaml.safe_load(one(objects, "ConfigMap", "dovetail-config")["data"]["config.yaml"])
    assert config.get("endpoint") == (endpoint and f"{endpoint}/{{namespace}}/{{pool}}")
    assert ("endpointCa" in config) == (authority is not None)

    operator = one(objects, "Deployment", "dovetail-operator")["spec"]["template"]["spec"]
    test = one(objects, "Pod", "dovetail-test")["spec"]
    trusted = [v["secret"]["secretName"] for v in operator["volumes"] if "secret" in v]
    assert trusted == ([authority] if authority else [])
    asked = test["containers"][0]["args"][1:]
    if what.endswith("Gateway of the user") or endpoint is None:  # not the chart's to answer
        assert asked == []
    else:
        assert asked == [endpoint, *(["/etc/dovetail/gateway/ca.crt"] if authority else [])]


def test_a_public_authority_is_asked_for_no_name_of_the_cluster(rendered):
    objects = rendered("cert-manager and a public authority")
    certificate = one(objects, "Certificate", "dovetail-gateway")["spec"]

    assert certificate["dnsNames"] == ["tails.example"]
    private = one(rendered("cert-manager"), "Certificate", "dovetail-gateway")["spec"]
    assert "dovetail-gateway.dovetail-system.svc" in private["dnsNames"]


@pytest.mark.parametrize("what", MATRIX)
def test_haproxy_accepts_the_gateways_configuration(rendered, tmp_path, what):
    values = MATRIX[what]
    if shutil.which("haproxy") is None:
        pytest.skip("haproxy is not on PATH; on Debian: apt-get install haproxy")
    name = f"{values.get('fullnameOverride', 'dovetail')}-gateway"
    found = [x for x in rendered(what) if x["metadata"]["name"] == name]
    texts = [x["data"]["haproxy.cfg"] for x in found if x["kind"] == "ConfigMap"]
    made = values.get("gateway", {})
    without = made.get("enabled") is False or made.get("gatewayApi", {}).get("enabled")
    assert len(texts) == (0 if without else 1)

    for text in texts:
        file = tmp_path / "haproxy.cfg"  # the certificate is tried where HAProxy runs
        file.write_text(re.sub(r" ssl crt \S+ alpn \S+", "", text))
        done = subprocess.run(
            ["haproxy", "-c", "-f", file], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_every_value_is_described_and_given_in_the_matrix():
    """Verify that no value is there that nothing shows, and none is let through unnamed."""

    def given(values, path):
        for step in path:
            values = values[0] if step == "[]" else values[step]

    for path, value in leaves(SCHEMA):
        assert len(value["description"]) > 10, path
        given(EVERYTHING, path)
    described = json.dumps(SCHEMA).count('"additionalProperties": false')
    assert described == json.dumps(SCHEMA).count('"properties": {')


def test_values_and_readme_are_those_that_the_schema_says(helm):
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    readme = (CHART / "README.md").read_text()
    for path, schema in leaves(SCHEMA):
        if "[]" in path:
            continue
        found = values
        for step in path:
            found = found[step]
        assert found == schema["default"], path
        assert f"`{'.'.join(path)}`" in readme


def test_a_pool_that_says_only_its_name_is_as_the_values_say():
    """Verify that the defaults that people read are those that the operator has."""
    pool = PoolConfig(name="a").model_dump(mode="json", by_alias=True, exclude={"name"})
    values = SCHEMA["properties"]
    said = values["pools"]["items"]["properties"]
    assert {name: item.get("default") for name, item in said.items() if name != "name"} == pool

    own = values["dedicatedPool"]["properties"]
    assert all(pool[name] == item["default"] for name, item in own.items())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"regsitry": {"url": "http://r"}}, "regsitry"),
        ({"registry": {"url": "r.example:5000"}}, "/registry/url"),
        ({"registry": {"url": ""}}, "registry.url: say where bundles are kept"),
        ({"operator": {"replicas": 0}}, "/operator/replicas"),
        ({"operator": {"replicas": "2"}}, "/operator/replicas"),
        ({"operator": {"loglevel": "info"}}, "loglevel"),
        ({"operator": {"logLevel": "verbose"}}, "/operator/logLevel"),
        ({"images": {"pullPolicy": "Sometimes"}}, "/images/pullPolicy"),
        ({"images": {"edge": {"digest": "latest"}}}, "/images/edge/digest"),
        ({"pools": [{"namespaces": ["a"]}]}, "/pools/0"),
        ({"pools": [{"name": "Big"}]}, "/pools/0/name"),
        ({"pools": [{"name": "a", "max_tails": 1}]}, "max_tails"),
        ({"pools": [{"name": "a", "maxTails": 501}]}, "/pools/0/maxTails"),
        ({"gateway": {"externalUrl": "devices.example"}}, "/gateway/externalUrl"),
        ({"gateway": {"externalUrl": "https://a/b"}}, "/gateway/externalUrl"),
        ({"gateway": {"tls": {"certManager": {"enabled": True}}}}, "issuerRef: name the issuer"),
        (
            {
                "gateway": {
                    "tls": {
                        "existingSecret": "a",
                        "certManager": {"enabled": True, "issuerRef": {"name": "a"}},
                    }
                }
            },
            "give existingSecret or enable certManager, not both",
        ),
        ({"gateway": {"gatewayApi": {"enabled": True}}}, "gateway.gatewayApi.url"),
        (
            {"gateway": {"gatewayApi": {"enabled": True, "url": "https://g.example"}}},
            "gateway.gatewayApi.parentRefs: name your Gateway",
        ),
        (
            {"gateway": {"tls": {"existingSecret": "a", "privateCa": False}}},
            "gateway.externalUrl: with gateway.tls.privateCa=false",
        ),
        (
            {"gateway": {"tls": {"privateCa": False}, "externalUrl": "https://a"}},
            "gateway.tls.privateCa: false is for a certificate of a public authority",
        ),
        (
            {"gateway": {"enabled": False, "externalUrl": "https://a"}},
            "gateway.externalUrl: there is no gateway",
        ),
        ({"networkPolicy": {"enabled": "yes"}}, "/networkPolicy/enabled"),
        ({"crds": {"keep": "no"}}, "/crds/keep"),
        ({"fullnameOverride": "Big"}, "/fullnameOverride"),
        ({"metrics": {"serviceMonitor": {"interval": "30"}}}, "interval"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_wrong(helm, values, message):
    with pytest.raises(HelmFailed) as refused:
        helm.template(**values)

    said = str(refused.value)
    assert message in said or message.replace("/", ".").lstrip(".") in said


@pytest.mark.parametrize("what", MATRIX)
def test_every_pod_is_admitted_under_restricted_pod_security(rendered, server, what):
    path = f"/api/v1/namespaces/{NAMESPACE}/pods"
    found = list(pods(copy.deepcopy(rendered(what))))
    assert len(found) >= 2
    for pod in found:
        for container in pod["spec"]["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"]
            assert container["resources"]["limits"]["memory"]
        server.request("POST", path, pod, params=STRICT)

    pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    with pytest.raises(Refused, match="violates PodSecurity"):
        server.request("POST", path, pod, params=STRICT)


def test_no_two_replicas_are_disturbed_at_once_and_a_single_one_never_blocks(helm):
    budgets = [x for x in helm.template() if x["kind"] == "PodDisruptionBudget"]
    assert {x["metadata"]["name"] for x in budgets} == {"dovetail-operator", "dovetail-gateway"}
    assert all(x["spec"]["maxUnavailable"] == 1 for x in budgets)

    alone = helm.template(**MATRIX["one of each"])
    assert not [x for x in alone if x["kind"] == "PodDisruptionBudget"]


def test_pods_are_replaced_when_their_configuration_changes_and_only_then(helm):
    def marks(**values):
        objects = helm.template(**values)
        return {
            name: one(objects, "Deployment", name)["spec"]["template"]["metadata"]["annotations"]
            for name in ("dovetail-operator", "dovetail-gateway")
        }

    before = marks()
    assert marks() == before
    assert marks(cache="/elsewhere")["dovetail-operator"] != before["dovetail-operator"]
    pools = marks(pools=[{"name": "other"}])
    assert all(pools[name] != before[name] for name in before)


def test_only_the_certificate_and_never_its_key_reaches_the_operator(helm):
    spec = one(helm.template(), "Deployment", "dovetail-operator")["spec"]["template"]["spec"]
    (secret,) = [volume["secret"] for volume in spec["volumes"] if "secret" in volume]
    assert secret == {
        "secretName": "dovetail-gateway-tls",
        "items": [{"key": "ca.crt", "path": "ca.crt"}],
    }


def test_the_ray_that_pools_are_told_is_the_one_that_is_installed():
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert values["rayVersion"] == version("ray")


def test_versions_of_chart_and_distribution_are_one():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == version("dovetail")


@pytest.mark.parametrize("name", ["dovetail", "a" * 40])
def test_the_operator_may_read_the_very_token_that_it_makes(helm, name):
    """Verify that the chart knows the name as the operator makes it."""
    objects = helm.template(fullnameOverride=name)
    release = one(objects, "ConfigMap", f"{name}-release")
    release["metadata"]["uid"] = "1"
    rules = one(objects, "Role", f"{name}-operator")["rules"]
    (allowed,) = [rule for rule in rules if rule["resources"] == ["secrets"]]

    assert allowed["verbs"] == ["get"]
    assert allowed["resourceNames"] == [token_secret(release, "ledger")["metadata"]["name"]]


def test_the_gateway_knows_a_dedicated_pool_by_the_name_that_the_operator_gives(helm):
    text = one(helm.template(), "ConfigMap", "dovetail-gateway")["data"]["haproxy.cfg"]
    (pattern,) = re.findall(r"acl dedicated .* -m reg (\S+)", text)
    for deployment in ("a", "page-orientation", "x" * 63, "pool"):
        assert re.search(pattern, dedicated_name(deployment))
    assert not re.search(pattern, "default")


def test_ray_is_reached_by_gateway_operator_kuberay_and_its_own_pool_alone(helm):
    policy = one(helm.template(), "NetworkPolicy", "dovetail-pool-default")["spec"]
    own, kuberay, served = policy["ingress"]

    pool = {"matchLabels": {"dovetail.dev/pool": "default"}}
    assert policy["podSelector"] == pool
    assert own == {"from": [{"podSelector": pool}]}
    assert [list(peer) for peer in kuberay["from"]] == [["namespaceSelector", "podSelector"]]
    assert served["ports"] == [{"port": 8000}]
    callers = [
        peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for peer in served["from"]
    ]
    assert callers == ["operator", "gateway"]
    plain = one(helm.template(gateway={"enabled": False}), "NetworkPolicy", "dovetail-pool-default")
    assert plain["spec"]["ingress"][-1] == {"ports": [{"port": 8000}]}


def test_what_to_do_next_is_said_and_names_what_is_missing(helm, server, apiserver):
    """Verify it on a server that has KubeRay and on one that has not."""
    there = {"crds": {"enabled": False}}  # another test's
    bare = helm.on(apiserver, "install", "--dry-run=server", "--create-namespace", **there)
    assert "KubeRay is missing" in bare
    assert "kubectl label node" in bare

    plain = helm.on(server, "install", "--dry-run=server", gateway={"enabled": False})
    assert "KubeRay is missing" not in plain
    assert "in plain text" in plain
    assert "spec.cloud.endpoint" in plain
    assert "gateway.externalUrl" not in plain


def test_what_to_do_next_is_done_in_the_namespace_that_is_served(helm, server):
    """Verify that nobody is sent where nothing is served, or left without the Secrets there."""

    def told(**values):
        return helm.on(server, "install", "--dry-run=server", **values).split("\nNOTES:\n")[1]

    first = told()
    assert "kubectl create namespace vision" in first
    assert "kubectl create secret" not in first

    alone = told(
        watchNamespace="default",
        images={"pullSecrets": [{"name": "pull"}]},
        registry={"url": "http://registry.example:5000", "existingSecret": "login"},
    )
    assert "vision" not in alone
    assert "kubectl create namespace" not in alone
    assert set(re.findall(r" -n (\S+)", alone)) == {"default", NAMESPACE}
    for secret in ("pull", "login"):
        assert f"kubectl create secret docker-registry {secret} -n default" in alone


def test_the_published_definition_is_the_one_that_is_installed(helm):
    """Verify that marks are all that the chart adds, so GitOps may take the file itself."""
    (file,) = (CHART / "files" / "crds").glob("*.yaml")
    installed = one(helm.template(), "CustomResourceDefinition", "hybriddeployments.dovetail.dev")
    assert installed["spec"] == yaml.safe_load(Path(file).read_text())["spec"]
    assert installed["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
