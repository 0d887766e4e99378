"""The operator as a process against a real API server: from a resource to what it should own.

Nobody runs pods here; what a Job, a DaemonSet and a pool would report is written as their
controllers would (`controllers.py`). Each test has a namespace of its own.
"""

import json

import pytest
import yaml
from tests.kube.cluster import CHILDREN, RAYS, Cluster
from tests.kube.controllers import JOBS, finish, merge, serve
from tests.kube.operators import configuration, install, operator, prepared, until

from dovetail.crd import render

pytestmark = pytest.mark.kube


@pytest.fixture(scope="module")
def decided():
    pools = [
        {"name": "default"},
        {"name": "small", "maxTails": 1},
        {"name": "others", "namespaces": ["elsewhere"]},
    ]
    return {"pools": pools, "poolIngress": [{"ports": [{"port": 8000}]}]}


def test_a_resource_becomes_ready_through_its_job_its_edges_and_its_pool(
    running_operator, cluster, made
):
    """Verify the way from a resource to Ready, and that each child is its own and harmless."""
    hybrid = cluster.create()
    cluster.ready(made)

    children = cluster.children()
    assert {item["metadata"]["ownerReferences"][0]["uid"] for item in children} == {
        hybrid["metadata"]["uid"]
    }
    assert len(children) == len(CHILDREN)
    status = cluster.get()["status"]
    assert status["bundle"] == made["bundle"]
    assert status["observedGeneration"] == 1
    assert status["classes"][0]["rung"] == "edge"
    (pods,) = cluster.items(CHILDREN[-1])
    pod = pods["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"kind": "camera"}
    assert pod["automountServiceAccountToken"] is False
    (service,) = cluster.items("/api/v1/namespaces/{}/services")
    assert service["spec"]["internalTrafficPolicy"] == "Local"
    assert (
        service["spec"]["selector"].items()
        <= pods["spec"]["template"]["metadata"]["labels"].items()
    )


def test_the_plan_of_the_config_map_is_the_plan_of_the_pool(running_operator, cluster, made):
    """Verify that edges and tails are told the same, and that the pool asks for Ray's token."""
    cluster.create()
    cluster.ready(made)

    (held,) = cluster.items("/api/v1/namespaces/{}/configmaps")
    plan = json.loads(held["data"]["plan.camera.json"])
    config = cluster.serve_config()
    mine = next(a for a in config["applications"] if a["name"].startswith(cluster.namespace))
    (secret,) = cluster.items("/api/v1/namespaces/{}/secrets")
    assert mine["deployments"][0]["user_config"]["plans"]["camera"] == plan
    assert (
        mine["deployments"][0]["user_config"]["tokens"]["camera"]
        == secret["metadata"]["annotations"]["dovetail.dev/token-sha256"]
    )
    cluster_config = cluster.server.request("GET", f"{RAYS}/default")["spec"]["rayClusterConfig"]
    assert cluster_config["authOptions"] == {"mode": "token"}


def test_nothing_is_written_while_nothing_changes(running_operator, cluster, made):
    """Verify that a settled deployment is reconciled again without a single write."""
    cluster.create()
    cluster.ready(made)
    versions = lambda: {  # noqa: E731
        item["metadata"]["uid"]: item["metadata"]["resourceVersion"]
        for item in [*cluster.children(), cluster.get()]
    }
    before, done = versions(), running_operator.metrics()

    # A label that nobody reads makes the DaemonSet's event bring the deployment back.
    pods = cluster.items(CHILDREN[-1])[0]["metadata"]
    path = f"{CHILDREN[-1].format(cluster.namespace)}/{pods['name']}"
    merge(cluster.server, path, {"metadata": {"annotations": {"touched": "yes"}}})
    before[pods["uid"]] = None
    name = 'dovetail_operator_reconcile_total{controller="hybriddeployment",result="done"}'
    until(lambda: running_operator.metrics()[name] > done[name], "a reconcile")

    after = versions() | {pods["uid"]: None}
    assert after == before


def test_pinning_a_rung_raises_the_generation_and_keeps_every_object(
    running_operator, cluster, made
):
    """Verify that a move by hand changes plan and pool, and starts no edge anew."""
    cluster.create()
    cluster.ready(made)
    (before,) = cluster.items(CHILDREN[-1])
    generation = cluster.get()["status"]["classes"][0]["planGeneration"]

    cluster.patch(adapt={"mode": "Manual"}, split={"rung": "cut1-int8"})
    cluster.wait("Moving", "Pinned")

    def published():
        applications = cluster.serve_config()["applications"]
        mine = next(a for a in applications if a["name"].startswith(cluster.namespace))
        return mine["deployments"][0]["user_config"]["plans"]["camera"]["default"] == "cut1-int8"

    until(published, "the plan in the pool")
    assert cluster.get()["status"]["classes"][0]["planGeneration"] > generation
    assert (
        cluster.items(CHILDREN[-1])[0]["metadata"]["generation"]
        == (before["metadata"]["generation"])
    )


def test_a_pinned_rung_that_is_not_on_the_ladder_is_reported_and_stops_nothing(
    running_operator, cluster, made
):
    """Verify that a wrong rung is said in Degraded while what runs goes on."""
    cluster.create()
    cluster.ready(made)
    before = {item["metadata"]["uid"] for item in cluster.children()}

    cluster.patch(adapt={"mode": "Manual"}, split={"rung": "cut9"})

    assert "cut9" in cluster.wait("Degraded", "UnknownRung")["message"]
    assert {item["metadata"]["uid"] for item in cluster.children()} == before


@pytest.mark.parametrize(
    "said",
    [
        pytest.param({"error": "SourceNotFound", "message": "404 for the model"}, id="missing"),
        pytest.param({"error": "DigestMismatch", "message": "it has sha256:1"}, id="another file"),
        pytest.param({"error": "ProofError", "message": "int8 is 9 % off"}, id="no proof"),
        pytest.param({"error": "UnsupportedModel", "message": "Loop is never loaded"}, id="model"),
    ],
)
def test_a_failed_partition_says_why_and_leaves_nothing_half_made(running_operator, cluster, said):
    """Verify that the Job's last words become the condition, and an Event."""
    cluster.create()
    finish(cluster.server, cluster.job(), said, failed=True)

    message = cluster.wait("Partitioned", "PartitionFailed")["message"]
    assert message == f"{said['error']}: {said['message']}"
    kinds = {path for path in CHILDREN if cluster.items(path)}
    assert kinds == {CHILDREN[0], CHILDREN[4]}
    events = f"/apis/events.k8s.io/v1/namespaces/{cluster.namespace}/events"
    told = until(
        lambda: [e for e in cluster.items(events) if e["reason"] == "PartitionFailed"], "an Event"
    )
    assert told[0]["type"] == "Warning"


def test_a_changed_model_is_partitioned_again_while_the_old_bundle_serves(
    running_operator, cluster, made
):
    """Verify that another model is another Job, and that what runs stays until it ends well."""
    cluster.create()
    cluster.ready(made)
    first = cluster.job()

    cluster.patch(model={"uri": "https://models.example/other.onnx"})
    cluster.wait("Partitioned", "Partitioning")
    (second,) = until(
        lambda: [
            j
            for j in cluster.items(JOBS)
            if "deletionTimestamp" not in j["metadata"]
            and j["metadata"]["uid"] != first["metadata"]["uid"]
        ],
        "another Job",
    )

    assert second["metadata"]["name"] != first["metadata"]["name"]
    assert cluster.items(CHILDREN[-1])
    assert cluster.get()["status"]["bundle"] == made["bundle"]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        pytest.param(
            {"cloud": {"pool": "nowhere"}},
            ("TailAvailable", "UnknownPool", "Change spec.cloud.pool"),
            id="a pool that the chart does not have",
        ),
        pytest.param(
            {"cloud": {"pool": "others"}},
            ("TailAvailable", "NamespaceNotServed", "spec.cloud.pool"),
            id="a pool of other namespaces",
        ),
        pytest.param(
            {"model": {"uri": "file:page.onnx"}},
            ("Partitioned", "SourceNotReachable", "pvc://"),
            id="a file of the writer's machine",
        ),
        pytest.param(
            {"edge": {"classes": [{"name": "camera"}]}},
            ("EdgeAvailable", "NoDevices", "nodeSelector"),
            id="a class without nodes",
        ),
        pytest.param(
            {"edge": {"classes": [{"name": "a", "nodeSelector": {"kind": "lamp"}}]}},
            ("EdgeAvailable", "NoNodeMatches", "kubectl label node"),
            id="a selector that finds no node",
        ),
    ],
)
def test_what_admission_cannot_see_is_reported_with_a_remedy(running_operator, cluster, spec, said):
    """Verify reason and remedy of each fault that only the operator can see."""
    kind, reason, remedy = said
    cluster.create()
    cluster.patch(**spec)

    condition = cluster.wait(kind, reason)
    assert condition["status"] == "False"
    assert remedy in condition["message"]
    assert cluster.condition("Ready")["status"] == "False"


def test_a_tail_that_takes_over_other_settings_is_not_said_to_be_away(
    running_operator, cluster, made
):
    """Verify it by what Ray Serve says of every application whenever its config changes."""
    cluster.create()
    cluster.ready(made)
    cluster.wait("TailAvailable", "TailRunning")
    pool = cluster.server.request("GET", f"{RAYS}/default")

    serve(cluster.server, pool, "DEPLOYING")
    generation = cluster.patch(objective={"deadline": "400ms"})["metadata"]["generation"]
    until(
        lambda: cluster.condition("TailAvailable")["observedGeneration"] == generation,
        "the change to be seen",
    )
    assert cluster.condition("TailAvailable")["status"] == "True"

    serve(cluster.server, pool, "DEPLOYING", endpoints=0)
    assert cluster.wait("TailAvailable", "TailDeploying")["status"] == "False"


def test_replicas_are_scaled_in_the_pool_and_nobody_elses_tail_is_touched(
    running_operator, cluster, made
):
    """Verify that the pool's config differs in that one figure, and that no pod is replaced."""
    cluster.create()
    cluster.create("other")
    for job in until(lambda: len(cluster.items(JOBS)) == 2 and cluster.items(JOBS), "Jobs"):
        finish(cluster.server, job, made)
    cluster.serving()
    cluster.serving("other")

    def tails():
        found = {a["name"]: a for a in cluster.serve_config()["applications"]}
        return {name: one for name, one in found.items() if name.startswith(cluster.namespace)}

    before = tails()
    pool = cluster.server.request("GET", f"{RAYS}/default")
    cluster.patch(cloud={"replicas": {"min": 2, "max": 6}})

    (mine,) = [name for name in before if "--page--" in name]
    after = until(lambda: tails()[mine] != before[mine] and tails(), "the tail scaled")
    scale = after[mine]["deployments"][0].pop("autoscaling_config")
    assert (scale["min_replicas"], scale["max_replicas"]) == (2, 6)
    assert before[mine]["deployments"][0].pop("num_replicas") == 1
    assert after == before
    config = cluster.server.request("GET", f"{RAYS}/default")["spec"]["rayClusterConfig"]
    assert config == pool["spec"]["rayClusterConfig"]


def test_a_full_pool_takes_no_newcomer_and_keeps_who_was_first(running_operator, cluster, made):
    """Verify that the second of one place is told, and moves in once the first has left."""
    cluster.create("first", cloud={"pool": "small"})
    finish(cluster.server, cluster.job(), made)
    cluster.wait("TailAvailable", "TailDeploying", "first")
    cluster.create("second", cloud={"pool": "small"})

    assert "Dedicated" in cluster.wait("TailAvailable", "PoolFull", "second")["message"]
    assert cluster.condition("TailAvailable", "first")["reason"] == "TailDeploying"

    cluster.delete("first")
    cluster.wait("TailAvailable", "WaitingForBundle", "second")


def test_a_ray_service_of_somebody_else_is_never_written(running_operator, cluster, made):
    """Verify that a RayService with a pool's name that we did not make is left as it is."""
    name = "small"
    template = {"spec": {"containers": [{"name": "ray", "image": "theirs"}]}}
    theirs = {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": "dovetail-operator"}},
        "spec": {
            "rayClusterConfig": {"headGroupSpec": {"rayStartParams": {}, "template": template}}
        },
    }
    until(lambda: not any(r["metadata"]["name"] == name for r in cluster.items(RAYS)), "no pool")
    before = cluster.server.request("POST", RAYS, theirs)
    try:
        cluster.create(cloud={"pool": name})
        finish(cluster.server, cluster.job(), made)
        cluster.wait("TailAvailable", "PoolNotOurs")
        until(lambda: cluster.get()["status"].get("bundle"), "the bundle")
        after = cluster.server.request("GET", f"{RAYS}/{name}")
        assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    finally:
        cluster.server.request("DELETE", f"{RAYS}/{name}")


def test_a_pool_of_its_own_goes_when_its_deployment_asks_for_another(
    running_operator, cluster, made
):
    """Verify that a dedicated pool is owned by its deployment and removed when it is left."""
    cluster.create(cloud={"pool": "Dedicated"})
    finish(cluster.server, cluster.job(), made)
    own = f"/apis/ray.io/v1/namespaces/{cluster.namespace}/rayservices"
    (pool,) = until(lambda: cluster.items(own), "a pool of its own")
    assert pool["metadata"]["ownerReferences"][0]["kind"] == "HybridDeployment"
    policies = "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies"
    (policy,) = cluster.items(policies)
    labels = pool["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["metadata"]["labels"]
    chosen = policy["spec"]["podSelector"]["matchLabels"]
    assert chosen.items() <= labels.items()
    own_pods, others = policy["spec"]["ingress"]
    assert own_pods["from"] == [{"podSelector": {"matchLabels": chosen}}]
    assert [port["port"] for port in others["ports"]] == [8000]

    cluster.patch(cloud={"pool": "default"})
    until(lambda: not cluster.items(own) and not cluster.items(policies), "no pool")
    cluster.serving()


def test_a_deleted_child_comes_back_and_a_stray_one_goes(running_operator, cluster, made):
    """Verify that the cluster is led back to what the spec says."""
    cluster.create()
    cluster.ready(made)
    (service,) = cluster.items("/api/v1/namespaces/{}/services")
    path = f"/api/v1/namespaces/{cluster.namespace}/services"

    cluster.server.request("DELETE", f"{path}/{service['metadata']['name']}")
    until(lambda: cluster.items(path), "the Service again")
    stray = {**service, "metadata": {**service["metadata"], "name": "stray"}, "spec": {}}
    stray["spec"] = {"ports": [{"port": 1}]}
    del stray["metadata"]["resourceVersion"], stray["metadata"]["uid"]
    cluster.server.request("POST", path, stray)
    until(lambda: len(cluster.items(path)) == 1, "the stray Service gone")


def test_the_tokens_secret_is_created_once_and_never_rewritten(running_operator, cluster, made):
    """Verify that a new spec leaves the class's credential as it is."""
    cluster.create()
    cluster.ready(made)
    (before,) = cluster.items("/api/v1/namespaces/{}/secrets")

    cluster.patch(objective={"deadline": "900ms"})
    until(lambda: cluster.get()["status"]["observedGeneration"] == 2, "the new spec")

    assert cluster.items("/api/v1/namespaces/{}/secrets") == [before]


def test_without_kuberay_the_tail_condition_says_what_to_install(hybrid, registry, tmp_path):
    """Verify the remedy where the cluster has no RayService, and that the rest goes on."""
    install(hybrid)
    cluster = Cluster(hybrid, "no-rays")
    with operator(hybrid, tmp_path, configuration(registry), "--watch-namespace=no-rays"):
        cluster.create()
        condition = cluster.wait("TailAvailable", "KubeRayMissing")
        assert "helm install kuberay-operator" in condition["message"]
        assert cluster.job()
    cluster.delete()


@pytest.fixture
def older(tmp_path):
    """An API server whose definition, as an earlier release's may, bounds less than ours."""
    definition = yaml.safe_load(render())
    (version,) = definition["spec"]["versions"]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    quantile = spec["objective"]["properties"]["quantile"]
    for bound in ("maximum", "exclusiveMaximum"):
        del quantile[bound]
    (tmp_path / "older").mkdir()
    with prepared(tmp_path / "older", hybrids=definition) as server:
        yield server


def test_a_resource_that_an_older_definition_admitted_is_reported_and_can_be_mended(
    older, registry, tmp_path
):
    """Verify that the field is named, that nothing is made of it, and that mending it is enough."""
    cluster = Cluster(older, "older")
    with operator(older, tmp_path, configuration(registry)) as process:
        cluster.create(objective={"quantile": 7})

        condition = cluster.wait("Degraded", "InvalidSpec")
        assert condition["status"] == "True"
        assert "spec.objective.quantile" in condition["message"]
        assert cluster.condition("Ready")["status"] != "True"
        assert not cluster.children()

        cluster.patch(objective={"quantile": 0.9})
        assert cluster.wait("Degraded", "AsExpected")["status"] == "False"
        assert cluster.job()
        assert process.process.poll() is None


def test_what_serves_stays_in_its_pool_though_its_spec_does_not_hold_any_more(
    older, registry, made, tmp_path
):
    """Verify that an operator that begins, as after an upgrade, takes no tail out for it."""
    cluster = Cluster(older, "older")
    cloud = {"threads": 3, "replicas": {"min": 1, "max": 2}}
    with operator(older, tmp_path, configuration(registry)):
        cluster.create(cloud=cloud)
        finish(older, cluster.job(), made)
        cluster.serving()
        cluster.create("other")  # makes the pool be composed anew once it goes
    before = cluster.serve_config()
    cluster.patch(objective={"quantile": 7})

    with operator(older, tmp_path, configuration(registry)):
        cluster.wait("Degraded", "InvalidSpec")
        jobs = until(lambda: len(cluster.items(JOBS)) == 2 and cluster.items(JOBS), "the other's")
        other = next(job for job in jobs if job["metadata"]["name"].startswith("other-"))
        finish(older, other, made)

        after = until(lambda: _more(before, cluster.serve_config()), "the other's tail")

    tails = {item["name"]: item for item in after["applications"]}
    (mine,) = [item for item in before["applications"] if item["name"].startswith("older--page")]
    assert tails[mine["name"]] == mine
    assert mine["args"]["threads"] == 3


def _more(before, after):
    return after if len(after["applications"]) > len(before["applications"]) else None


def test_a_registry_that_is_away_is_reported_and_asked_again(hybrid, made, tmp_path):
    """Verify that a retry is a condition with its cause, not a silent wait."""
    install(hybrid)
    cluster = Cluster(hybrid, "no-registry")
    nobody = configuration("http://127.0.0.1:9")
    with operator(hybrid, tmp_path, nobody, "--watch-namespace=no-registry"):
        cluster.create()
        finish(hybrid, cluster.job(), made)
        assert "registry" in cluster.wait("Degraded", "Retrying")["message"]
    cluster.delete()
