"""The two readers of one resource agree: pydantic, and the API server by the generated schema.

A spec of random fields would be refused for its first field and say nothing of the others. So each
spec here is a valid one that was changed in one place (every place in turn, by every value that
lies on a boundary) or in a few (at random). What is changed may still be valid: only the two
verdicts count, and that both come up.
"""

import copy
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.kube.apiserver import Refused
from tests.kube.resources import PATH, STRICT, resource, whole

from dovetail.api import parse_manifest
from dovetail.crd import definition
from dovetail.errors import ManifestError

pytestmark = pytest.mark.kube

EXAMPLES = 300
DIGEST = "sha256:" + "0" * 64

DURATIONS = ["0s", "5s", "1.5h", "5", "1e3s", "0.000ms", "5s\n", "9999999999s", "1.0000s"]
RUNGS = ["edge", "cloud-uint8", "cut1", "cut0", "cut100", "cut1-", "cut9-" + "a" * 32]
RUNGS += ["cut9-" + "a" * 33, "cloud-zstd"]
CHOICES = ["Auto", "Manual", "Paused", "Split", "Open", "Masked", "Local", "NHWC", "int8", "true"]
CHOICES += ["auto", "Exists", "NoExecute", "jpeg90-zstd", "onnxruntime", "Dedicated", "dedicated"]
LABELS = ["a", "A", "a-", "-a", "a" * 63, "a" * 64, "a.b", "a/b", "/a", "a_b", "null", "", " ", "é"]
LABELS += ["a" * 40, "a" * 41, "a\n", "k.io/" + "a" * 63, "k.io/" + "a" * 64, "a\x00", "😀"]
URIS = ["file:x", "file:", "http://x\ny", "https://é", "https://x\u2028y", "ftp://x", "oci://r/m"]
URIS += [
    "pvc://claim/x",
    "pvc://claim",
    "https://" + "a" * 2040,
    "https://" + "a" * 2041,
    "http:///",
]
ARTIFACT = f"r.example/m@{DIGEST}"
URIS += [
    f"oci://{ARTIFACT}",
    f"oci://{ARTIFACT}\n",
    f"oci://{ARTIFACT}0",
    f"oci://R.example:5/{ARTIFACT}",
]
URIS += ["oci://r/m:tag", f"oci://r/m:tag@{DIGEST}", f"oci://r/M@{DIGEST}", f"oci:///m@{DIGEST}"]
URIS += [
    f"oci://é/m@{DIGEST}",
    f"oci://r x/m@{DIGEST}",
    f"oci://[::1]:5000/m@{DIGEST}",
    f"oci://r@{DIGEST}",
]
DIGESTS = [DIGEST, f"{DIGEST}\n", DIGEST[:-1], f"{DIGEST}0", DIGEST.upper(), DIGEST[:-1] + "g"]
AMOUNTS = ["1", "500m", "0", "01", "1.5", "2Gi", "2G", "-1Gi", "999999999Ki", "1000000m"]
STRINGS = [*DURATIONS, *RUNGS, *CHOICES, *LABELS, *URIS, *DIGESTS, *AMOUNTS]
WHOLE_NUMBERS = [-1, 0, 1, 2, 3, 4, 20, 21, 256, 257, 1000, 1001, 1024, 1025, 2**31 - 1, 2**31]
# None is within 1e-9 of a whole number: the API server takes such a one for whole.
NUMBERS = [*WHOLE_NUMBERS, 2**63, 10**30, -0.1, -0.0, 0.0, 0.5, 0.9, 0.91, 0.98, 1.0, 1.5, 4.0]
NUMBERS += [5e-324, 1e-300, 1e20, 1e300]
ANYTHING = [None, True, False, 7, 0.5, "a", "7", [], [None], ["a"], [1], {}, {"a": 1}, {"": "a"}]


def places(node, path="spec"):
    """Every (path, container, key) of a document."""
    for key, child in list(node.items() if isinstance(node, dict) else enumerate(node)):
        where = f"{path}.{key}"
        yield where, node, key
        if isinstance(child, (dict, list)):
            yield from places(child, where)


PLACES = [where for where, _, _ in places(whole())]


def leaves(schema, path="spec"):
    """Every field of a schema that holds no others."""
    if "properties" in schema:
        for name, child in schema["properties"].items():
            yield from leaves(child, f"{path}.{name}")
    elif "items" in schema:
        yield from leaves(schema["items"], f"{path}.0")
    else:
        yield path


def alternatives(value):
    """What a value is changed to."""
    if isinstance(value, str):
        return [*ANYTHING, *STRINGS, f"{value}\n", f" {value}", value.upper(), value * 99]
    if isinstance(value, (int, float)):
        return [*ANYTHING, *NUMBERS]
    if isinstance(value, list):
        more = [{"name": f"n{i}"} for i in range(65)]
        return [*ANYTHING, value * 2, value * 40, more[:32], more[:33], more[:64], more, [1] * 9]
    if not isinstance(value, dict):
        return ANYTHING
    keys = [key for key in value if isinstance(key, str)]
    renamed = [{**value, key.upper(): value[key]} for key in keys]
    thinned = [{name: value[name] for name in keys if name != key} for key in keys]
    labels = [{f"a{i}": "b" for i in range(count)} for count in (16, 17)]
    return [*ANYTHING, *renamed, *thinned, *labels, {**value, "max_batch": 1}, {**value, "x": None}]


def verdict_of_pydantic(spec):
    """None where the manifest is read, else why not."""
    try:
        parse_manifest(resource(spec), "test")
    except ManifestError as error:
        return str(error)
    return None


def as_kubectl_sends(node):
    """A document as `kubectl` makes it of YAML, where 4.0 becomes 4.

    From a client that sends 4.0 itself, the API server takes it for an integer only where no CEL
    rule reads the field.
    """
    if isinstance(node, dict):
        return {key: as_kubectl_sends(value) for key, value in node.items()}
    if isinstance(node, list):
        return [as_kubectl_sends(value) for value in node]
    return int(node) if isinstance(node, float) and node.is_integer() else node


def verdict_of_the_api_server(server, spec):
    """None where the resource is admitted, else why not."""
    try:
        server.request("POST", PATH, as_kubectl_sends(resource(spec)), params=STRICT)
    except Refused as error:
        if error.code not in (400, 422):
            raise  # it refused the request, not the resource
        return error.message
    return None


def test_every_field_is_given_in_the_spec_that_is_changed():
    """Verify that whoever adds a field adds it to `whole()`, and so to the tests below."""
    version = definition()["spec"]["versions"][0]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]

    places_given = {re.sub(r"\.[0-9]+", ".0", place) for place in PLACES}
    assert set(leaves(spec)) <= places_given


def test_the_spec_that_is_changed_is_valid_to_both(hybrid):
    """Verify that what is refused below is refused for its change."""
    assert verdict_of_pydantic(whole()) is None
    assert verdict_of_the_api_server(hybrid, whole()) is None


@pytest.mark.parametrize("place", PLACES)
def test_no_value_on_a_boundary_is_taken_by_one_and_refused_by_the_other(hybrid, place):
    """Verify one place of a spec with every value that is special to some field."""
    verdicts = []
    for index in range(len(alternatives(find(whole(), place)))):
        spec = whole()
        container, key = next((box, key) for where, box, key in places(spec) if where == place)
        container[key] = value = alternatives(container[key])[index]
        ours, theirs = verdict_of_pydantic(spec), verdict_of_the_api_server(hybrid, spec)
        verdicts.append((value, ours, theirs))

    assert [item for item in verdicts if (item[1] is None) != (item[2] is None)] == []
    assert any(ours for _, ours, _ in verdicts)


def find(spec, place):
    """The value at a path."""
    return next(box[key] for where, box, key in places(spec) if where == place)


@st.composite
def changed(draw):
    """A valid spec after a few changes; most fields are left out, most changes are one."""
    spec = whole()
    for _ in range(draw(st.integers(1, 5))):
        found = list(places(spec))
        if not found:
            break
        _, container, key = draw(st.sampled_from(found))
        if draw(st.integers(0, 3)):
            del container[key]
        else:
            options = st.sampled_from(alternatives(container[key]))
            container[key] = copy.deepcopy(draw(options | TEXT | st.floats(-2, 2)))
    return spec


# No surrogates: they have no UTF-8, so no JSON body can carry them.
TEXT = st.text(st.characters(codec="utf-8"), max_size=12)


def test_pydantic_and_the_api_server_give_the_same_verdict(hybrid):
    """Verify that no spec is taken by one and refused by the other."""
    seen = {True: 0, False: 0}

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(changed())
    def agree(spec):
        ours, theirs = verdict_of_pydantic(spec), verdict_of_the_api_server(hybrid, spec)
        seen[ours is None] += 1
        assert (ours is None) == (theirs is None), f"pydantic: {ours}\nAPI server: {theirs}"

    agree()
    assert min(seen.values()) > EXAMPLES / 20, seen
