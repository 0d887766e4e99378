"""What a deployment should own, and what is said of it: pure values."""

import pytest

from dovetail.api import parse_manifest
from dovetail.errors import ManifestError
from dovetail_operator import conditions, desired, edges
from dovetail_operator.conditions import Finding, Findings
from dovetail_operator.config import Config
from dovetail_operator.names import child_name, same, stamped
from dovetail_operator.rayservice import Claim, admitted, ray_service
from dovetail_operator.record import partition_hash

BASE = {
    "release": "r",
    "namespace": "system",
    "images": {"edge": "e", "partitioner": "p", "serving": "s"},
    "registry": {"url": "http://registry:5000"},
    "rayVersion": "2.60.0",
}
CONFIG = Config.model_validate(BASE)


def hybrid(name="page", **spec):
    return {
        "apiVersion": "dovetail.dev/v1alpha1",
        "kind": "HybridDeployment",
        "metadata": {"name": name, "namespace": "default", "uid": "u", "generation": 1},
        "spec": {"model": {"uri": "https://models.example/page.onnx"}, **spec},
    }


def parsed(item):
    metadata = {key: item["metadata"][key] for key in ("name", "namespace")}
    return parse_manifest({**item, "metadata": metadata}, "test")


def test_the_same_spec_is_the_same_job_and_another_model_another():
    """Verify that a Job's name follows from what the bundle is made from and nothing else."""
    first, again = hybrid(), hybrid(objective={"deadline": "1s"}, privacy="Masked")
    other = hybrid(model={"uri": "https://models.example/other.onnx"})

    names = [desired.partition_job_name(parsed(item)) for item in (first, again, other)]

    assert names[0] == names[1] != names[2]
    assert partition_hash(parsed(first)) != partition_hash(parsed(other))


def test_what_a_bundle_is_made_from_has_one_name_in_every_release():
    """Verify the very digits, which a field that is added must not change, and every field's say.

    A release that names it otherwise partitions every model anew.
    """
    minimal = partition_hash(parsed(hybrid()))
    defaults = {
        "inputs": [],
        "split": {"maxSegments": 6},
        "quality": {"minTop1Agreement": 0.98, "maxError": 0.05},
        "wire": {},
        "mode": "Split",
    }
    image = {"inputs": [{"name": "x", "image": {}}]}
    told = {"inputs": [{"name": "x", "image": {"layout": "NCHW", "mean": [0.0]}}]}
    others = [
        {"inputs": [{"name": "x", "shape": [0, 3]}]},
        {"inputs": [{"name": "x"}]},
        image,
        {"split": {"maxSegments": 5}},
        {"quality": {"maxError": 0.1}},
        {"wire": {"codecs": ["raw"]}},
        {"calibration": {"uri": "https://models.example/rows.npz"}},
    ]

    assert minimal == "50ac92a931376c89"
    assert partition_hash(parsed(hybrid(**defaults))) == minimal
    pinned = hybrid(adapt={"mode": "Manual"}, split={"rung": "edge"})
    assert partition_hash(parsed(pinned)) == minimal
    assert partition_hash(parsed(hybrid(**image))) == partition_hash(parsed(hybrid(**told)))
    hashes = {partition_hash(parsed(hybrid(**spec))) for spec in others}
    assert len(hashes | {minimal}) == len(others) + 1


def test_a_job_runs_where_and_with_what_the_chart_says():
    """Verify resources, node labels and tolerations, and what they are where nothing is said."""
    toleration = {"key": "build", "operator": "Exists"}
    given = {
        "resources": {"requests": {"cpu": "2"}, "limits": {"memory": "16Gi"}},
        "nodeSelector": {"kind": "build"},
        "tolerations": [toleration],
    }
    item = hybrid()

    def pod(config):
        return desired.partition_job(item, parsed(item), config)["spec"]["template"]["spec"]

    plain, placed = pod(CONFIG), pod(Config.model_validate({**BASE, "partitioner": given}))

    assert placed["containers"][0]["resources"] == given["resources"]
    assert placed["nodeSelector"] == given["nodeSelector"]
    assert placed["tolerations"] == [toleration]
    assert plain["containers"][0]["resources"]["limits"] == {"memory": "8Gi"}
    assert not plain["nodeSelector"]
    assert not plain["tolerations"]


def test_a_claim_and_credentials_are_mounted_where_the_job_looks():
    """Verify the volumes of a model on a claim and of one in a registry that asks for a login."""
    claim = hybrid(model={"uri": "pvc://models/page/model.onnx"})
    login = hybrid(model={"uri": "oci://r.example/m@sha256:" + "0" * 64, "credentials": "login"})

    def volumes(item):
        spec = desired.partition_job(item, parsed(item), CONFIG)["spec"]["template"]["spec"]
        return {volume["name"]: volume for volume in spec["volumes"]}

    assert volumes(claim)["model"]["persistentVolumeClaim"]["claimName"] == "models"
    assert volumes(login)["login"]["secret"]["secretName"] == "login"


def test_pods_run_without_rights_and_without_privileges():
    """Verify the restricted profile of Job and edge, but for the path where bundles are kept."""
    item = hybrid(edge={"classes": [{"name": "camera", "nodeSelector": {"kind": "camera"}}]})
    (edge_class,) = parsed(item).spec.edge.classes
    reach = edges.Access("http://pool")
    daemon_set, _ = edges.edge(item, edge_class, reach, CONFIG, slower=None)
    for body in (daemon_set, desired.partition_job(item, parsed(item), CONFIG)):
        pod = body["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["securityContext"]["readOnlyRootFilesystem"] is True


def edge_of(item=None, *, reach=None, slower=None, **config):
    """The edge's DaemonSet of a deployment on cameras."""
    item = item or hybrid(
        edge={"classes": [{"name": "camera", "nodeSelector": {"kind": "camera"}}]}
    )
    (edge_class,) = parsed(item).spec.edge.classes
    more = CONFIG.model_copy(update=config)
    reach = reach or edges.Access("http://pool")
    return edges.edge(item, edge_class, reach, more, slower=slower)[0]


def test_an_edge_is_told_its_address_its_device_and_its_folder_and_no_bundle():
    """Verify the arguments, and that a new bundle starts no edge anew."""
    pod = edge_of()["spec"]["template"]["spec"]
    (container,) = pod["containers"]

    assert container["args"] == [
        "--endpoint=http://pool",
        "--device-class=camera",
        "--token-file=/etc/dovetail/token/token",
        "--plan=/etc/dovetail/plan/plan.json",
        "--state=/var/lib/dovetail/default--page--camera",
        "--host=0.0.0.0",
        "--port=8000",
        "--threads=1",
        "--device=$(NODE_NAME)",
    ]
    assert container["env"][0]["valueFrom"] == {"fieldRef": {"fieldPath": "spec.nodeName"}}
    host = next(volume for volume in pod["volumes"] if "hostPath" in volume)
    assert host["hostPath"]["path"] == "/var/lib/dovetail/default--page--camera"


def test_an_edge_trusts_an_authority_slows_down_and_tells_a_collector_only_where_asked():
    """Verify what each decision adds to the pod."""
    reach = edges.Access("https://gateway/a/b", "PEM")
    pod = edge_of(reach=reach, slower="30", telemetry="http://otel:4318")["spec"]["template"][
        "spec"
    ]
    (container,) = pod["containers"]

    assert {"--ca-file=/etc/dovetail/plan/ca.crt", "--slowdown=30"} < set(container["args"])
    plan = next(volume for volume in pod["volumes"] if volume["name"] == "plan")
    assert {"key": "ca.crt", "path": "ca.crt"} in plan["configMap"]["items"]
    assert container["env"][1]["value"] == "http://otel:4318"


def test_a_pod_that_replaces_another_is_ready_before_the_other_ends():
    """Verify surge, the pause in which nodes learn of it, and time for requests under way."""
    spec = edge_of()["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]

    assert spec["updateStrategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert 0 < pause < pod["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("text", ["fast", "0.5", "nan", "inf", ""])
def test_a_slowdown_that_is_no_factor_is_refused(text):
    """Verify that an annotation is held to the edge's own bounds."""
    item = hybrid()
    item["metadata"]["annotations"] = {"dovetail.dev/slowdown": text}

    with pytest.raises(ManifestError, match="factor of 1 or more"):
        edges.slowdown(item)


def test_devices_on_nodes_and_outside_have_addresses_of_their_own():
    """Verify which address wins: the deployment's, the chart's, the pool's."""
    config = CONFIG.model_copy(
        update={
            "endpoint": "https://gw/{namespace}/{pool}",
            "external_endpoint": "https://out/{pool}",
        }
    )
    own = parsed(hybrid(cloud={"endpoint": "https://mine"}))
    any_ = parsed(hybrid())

    def both(deployment, config):
        reach = edges.external_access(deployment, "system/default", config, "PEM")
        inside = edges.access(deployment, "system/default", config, "PEM").endpoint
        return inside, reach and reach.endpoint

    assert both(own, config) == ("https://mine", "https://mine")
    assert both(any_, config) == ("https://gw/system/default", "https://out/default")
    assert both(any_, CONFIG) == ("http://default-serve-svc.system.svc:8000", None)


def test_a_secret_for_joining_holds_no_token_that_would_be_written_again():
    """Verify that address and authority are written apart from the token."""
    item = hybrid(edge={"classes": [{"name": "phone", "deviceGroup": "phones"}]})
    (edge_class,) = parsed(item).spec.edge.classes

    made = edges.token_secret(item, "phone", "phones")
    joined = edges.joining(item, edge_class, edges.Access("https://out", "PEM"))

    assert made["metadata"]["name"] == joined["metadata"]["name"]
    assert set(made["data"]) == {"token"}
    assert set(joined["data"]) == {"endpoint", "ca.crt"}
    assert joined["metadata"]["labels"]["dovetail.dev/device-group"] == "phones"


@pytest.mark.parametrize(
    ("owner", "role", "part"), [("a", "edge", "b"), ("a" * 63, "edge", "b" * 63), ("a", "plan", "")]
)
def test_a_childs_name_is_a_name(owner, role, part):
    """Verify the length, and that it depends on all three."""
    name = child_name(owner, role, part)

    assert len(name) <= 63
    assert name != child_name(owner, role, part + "x")
    assert child_name("a-edge", "edge", "b") != child_name("a", "edge", "edge-b")


def test_only_what_differs_is_written():
    """Verify that the digest of the content decides, not what the API server added."""
    wanted = stamped({"kind": "X", "metadata": {"name": "a"}, "spec": {"a": 1}})
    found = {**wanted, "spec": {"a": 1, "defaulted": True}}

    assert same(wanted, found)
    assert not same(wanted, None)
    assert not same(stamped({**wanted, "spec": {"a": 2}}), found)


def test_who_came_first_stays_when_a_pool_is_full():
    """Verify that a newcomer never takes a place, whatever its name."""
    claims = [
        Claim("2026-01-02", "b/late", ("v1",)),
        Claim("2026-01-01", "z/early", ("v1",)),
        Claim("2026-01-03", "a/last"),
    ]

    assert admitted(claims, 2) == {"z/early": ("v1",), "b/late": ("v1",)}


def test_a_new_version_takes_a_place_and_pushes_nobody_out():
    """Verify that places are applications, and that what runs goes before what is to run."""
    first = Claim("2026-01-01", "a/first", ("v2", "v1"), "v3")
    second = Claim("2026-01-02", "b/second", ("v1",), "v2")

    assert admitted([second, first], 3) == {"a/first": ("v2", "v1"), "b/second": ("v1",)}
    assert admitted([second, first], 4)["a/first"] == ("v2", "v1", "v3")
    assert admitted([second, first], 5)["b/second"] == ("v1", "v2")


def test_a_version_that_replaces_a_refused_one_takes_its_place():
    """Verify that a deployment whose only tail was refused can be put right in a full pool."""
    assert admitted([Claim("2026-01-01", "a/first", (), "v2")], 1) == {"a/first": ("v2",)}


FINE = Finding("True", "Fine", "it is fine")


def findings(**other):
    every = dict.fromkeys(("partitioned", "tail", "edge", "moving"), FINE)
    return Findings(**{**every, "degraded": conditions.AS_EXPECTED, **other})


def ready(status):
    return next(one for one in status.conditions if one.type == "Ready")


def test_ready_says_the_first_cause():
    """Verify that Ready holds if all hold, and otherwise names what does not."""
    broken = findings(
        tail=Finding("False", "PoolFull", "no place"), edge=Finding("False", "X", "y")
    )

    assert ready(conditions.status_of(findings(), 1, {}, "2026-01-01T00:00:00Z")).status == "True"
    found = ready(conditions.status_of(broken, 1, {}, "2026-01-01T00:00:00Z"))
    assert (found.status, found.reason, found.message) == (
        "False",
        "PoolFull",
        "TailAvailable: no place",
    )


def test_a_conditions_time_changes_only_with_its_status():
    """Verify that a new reason alone leaves the transition time."""
    old = {"Ready": {"status": "False", "lastTransitionTime": "2026-01-01T00:00:00Z"}}
    broken = findings(tail=Finding("False", "PoolFull", "no place"))
    now = "2026-02-02T00:00:00Z"

    stays = ready(conditions.status_of(broken, 1, old, now))
    turns = ready(conditions.status_of(findings(), 1, old, now))

    assert stays.last_transition_time == "2026-01-01T00:00:00Z"
    assert turns.last_transition_time == now


def test_a_long_message_is_cut_with_a_mark():
    """Verify that a traceback does not break the status."""
    long = findings(tail=Finding("False", "TailFailed", "x" * 9000))

    status = conditions.status_of(long, 1, {}, "2026-01-01T00:00:00Z")

    assert all(len(one.message) <= 1024 for one in status.conditions)
    assert ready(status).message.endswith("…")


def pods_of(config):
    """The pods of a Job, an edge and a pool."""
    item = hybrid(edge={"classes": [{"name": "camera", "nodeSelector": {"kind": "camera"}}]})
    (edge_class,) = parsed(item).spec.edge.classes
    reach = edges.Access("http://pool")
    yield desired.partition_job(item, parsed(item), config)["spec"]["template"]["spec"]
    yield edges.edge(item, edge_class, reach, config, slower=None)[0]["spec"]["template"]["spec"]
    pool = ray_service(
        "p", "n", {}, members=(), pool=config.pools[0], config=config, operator_token=""
    )
    cluster = pool["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group["template"]["spec"]


def test_every_pod_pulls_its_image_as_the_chart_says():
    """Verify policy and Secrets in Job, edge, head and worker, and no Secrets where none are."""
    images = CONFIG.images.model_copy(update={"pull_policy": "Always", "pull_secrets": ("a", "b")})
    found = list(pods_of(CONFIG.model_copy(update={"images": images})))

    assert len(found) == 4
    for pod in found:
        containers = [*pod.get("initContainers", ()), *pod["containers"]]
        assert {container["imagePullPolicy"] for container in containers} == {"Always"}
        assert pod["imagePullSecrets"] == [{"name": "a"}, {"name": "b"}]
    assert not any("imagePullSecrets" in pod for pod in pods_of(CONFIG))


def test_a_pool_of_its_own_is_reached_by_its_own_pods_and_whom_the_chart_names():
    """Verify the policy's pods and callers, and that there is none where the chart wants none."""
    rules = ({"ports": [{"port": 8000}]},)
    (policy,) = desired.pool_policy(
        hybrid(), "default/mine", CONFIG.model_copy(update={"pool_ingress": rules})
    )

    pods = {"matchLabels": {"dovetail.dev/pool": "mine"}}
    assert policy["spec"] == {
        "podSelector": pods,
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": pods}]}, *rules],
    }
    assert desired.pool_policy(hybrid(), "default/mine", CONFIG) == []
