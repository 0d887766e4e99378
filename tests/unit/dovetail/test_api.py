"""A manifest is read as a cluster reads it; what is wrong is named with what was expected."""

import pytest

from dovetail.api import load_manifest, parse_manifest, seconds
from dovetail.errors import ManifestError

HEAD = "apiVersion: dovetail.dev/v1alpha1\nkind: HybridDeployment\nmetadata: {name: page}\n"
MODEL = "model: {uri: 'file:page.onnx'}"


def load(tmp_path, text):
    """Read a manifest from a file."""
    path = tmp_path / "page.yaml"
    path.write_text(text)
    return load_manifest(path)


def test_the_smallest_manifest_has_a_namespace_and_one_device_class(tmp_path):
    """Verify that only a name and a model must be given."""
    deployment = load(tmp_path, f"{HEAD}spec: {{{MODEL}}}")

    assert deployment.key == "default/page"
    assert [item.name for item in deployment.spec.edge.classes] == ["default"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cloud: {threads: '4'}", r"spec\.cloud\.threads.*valid integer"),
        ("cloud: {max_batch: 4}", r"spec\.cloud\.max_batch.*not permitted"),
        ("adapt: {window: .nan}", r"spec\.adapt\.window"),
        ("quality: {maxError: .inf}", r"spec\.quality\.maxError.*finite"),
        ("wire: {codecs: [int9]}", r"spec\.wire\.codecs\.0.*unknown codec 'int9'; known are"),
        ("adapt: {mode: Manual}", r"needs split\.rung: the rung to keep"),
        ("split: {rung: edge}", r"needs adapt\.mode: Manual"),
        ("edge: {classes: [{name: a}, {name: a}]}", "name 'a' is given more than once"),
        ("objective: {deadline: 5}", r"spec\.objective\.deadline.*valid string"),
        ("objective: {deadline: soon}", "must be a duration such as 500ms, 5s or 2m"),
    ],
)
def test_a_fault_is_named_with_its_field_and_what_was_expected(tmp_path, spec, message):
    """Verify that a person can act on what is printed."""
    with pytest.raises(ManifestError, match=message):
        load(tmp_path, f"{HEAD}spec: {{{MODEL}, {spec}}}")


def test_all_faults_are_named_at_once(tmp_path):
    """Verify that a person need not run as often as there are faults."""
    with pytest.raises(ManifestError) as raised:
        load(tmp_path, f"{HEAD}spec: {{{MODEL}, privacy: open, mode: split, colour: red}}")

    assert len(str(raised.value).splitlines()) == 4


def test_a_list_with_a_faulty_item_is_not_said_to_be_too_short(tmp_path):
    """Verify that only the fault itself is named."""
    with pytest.raises(ManifestError) as raised:
        load(tmp_path, f"{HEAD}spec: {{{MODEL}, edge: {{classes: [{{name: Pi}}]}}}}")

    assert "lower case" in str(raised.value)
    assert "at least" not in str(raised.value)


def test_a_whole_number_may_be_written_with_a_point(tmp_path):
    """Verify what a cluster does, which keeps no difference between 4.0 and 4."""
    spec = load(tmp_path, f"{HEAD}spec: {{{MODEL}, cloud: {{threads: 4.0}}}}").spec

    assert (type(spec.cloud.threads), spec.cloud.threads) == (int, 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "0 documents"),
        ("a: 1\n---\nb: 2", "2 documents"),
        ("[1]", "expected one HybridDeployment"),
        ("a: [", "not YAML"),
        ("kind: Deployment", "apiVersion is None; expected 'dovetail.dev/v1alpha1'"),
        (HEAD, r"spec: Field required"),
    ],
)
def test_what_is_no_manifest_is_told_apart(tmp_path, text, message):
    """Verify that each kind of wrong file has words of its own."""
    with pytest.raises(ManifestError, match=message):
        load(tmp_path, text)


def test_a_null_means_not_given(tmp_path):
    """Verify what a cluster does with nulls, which templates leave behind."""
    spec = f"{HEAD}spec: {{{MODEL}, split: {{rung: null, maxSegments: null}}, wire: null}}"

    assert load(tmp_path, spec) == load(tmp_path, f"{HEAD}spec: {{{MODEL}}}")


def test_a_missing_file_is_an_error_of_the_user(tmp_path):
    """Verify that no traceback is printed for a wrong path."""
    with pytest.raises(ManifestError, match="No such file"):
        load_manifest(tmp_path / "nobody.yaml")


def test_a_parsed_manifest_survives_being_written_and_read():
    """Verify that what is stored reads back as the same deployment."""
    document = {
        "apiVersion": "dovetail.dev/v1alpha1",
        "kind": "HybridDeployment",
        "metadata": {"name": "page", "labels": {"team": "scan"}},
        "spec": {
            "model": {"uri": "file:page.onnx"},
            "inputs": [{"name": "x", "shape": [0, 3, 224, 224], "image": {"scale": 1}}],
        },
    }
    deployment = parse_manifest(document, "first")

    written = deployment.model_dump(mode="json", by_alias=True)
    assert parse_manifest(written, "second") == deployment


@pytest.mark.parametrize(("text", "value"), [("500ms", 0.5), ("2m", 120.0), ("1.5h", 5400.0)])
def test_a_duration_is_seconds(text, value):
    """Verify each unit."""
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["5", "5 s", "-1s", "1d", "5s\n", ""])
def test_what_is_no_duration_is_refused_with_an_example(text):
    """Verify that a unit is never guessed."""
    with pytest.raises(ManifestError, match="write one such as 500ms"):
        seconds(text)
