"""The two readers of one resource agree: pydantic, and the API server by the generated schema.

Specs are drawn valid and then spoiled, because a spec of random fields is refused for its first
field and says nothing of the others. What is spoiled may still be valid: only the two verdicts
count, and that both come up is counted too.
"""

import copy

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from tests.kube.apiserver import Refused
from tests.kube.resources import PATH, STRICT, resource

from dovetail.api import CODECS, parse_manifest
from dovetail.errors import ManifestError

pytestmark = pytest.mark.kube

EXAMPLES = 400

# No surrogates: they have no UTF-8, so no JSON body can carry them.
TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
NUMBERS = st.one_of(
    st.sampled_from([-1, 0, 1, 2, 9, 20, 21, 256, 1000, 1025, 2**31 - 1, 2**31, 2**63, 10**30]),
    st.integers(),
    st.sampled_from([-0.1, 0.0, 0.1, 0.5, 0.9, 0.98, 1.5, 1e-300, 1e300, 5e-324, 1.0, 5.0, 1e20]),
    st.floats(allow_nan=False, allow_infinity=False),
)
DURATION_LIKE = ("0s", "5s", "1.5h", "5", "1e3s", "0.000ms", "5s\n", "9999999999s", "")
RUNG_LIKE = ("edge", "cloud-uint8", "cut1", "cut0", "cut100", "cut1-", "cut9-" + "a" * 32)
CHOICES = ("Auto", "Manual", "Paused", "Split", "Open", "Masked", "Local", "NHWC", "int8", "true")
LABEL_LIKE = ("a", "A", "a-", "a" * 63, "a" * 64, "a.b", "null")
URI_LIKE = ("file:x", "file:", "http://x\ny", "https://é", "https://x\u2028y", "ftp://x")
DIGEST_LIKE = ("sha256:" + "0" * 64, "sha256:" + "0" * 64 + "\n", "sha256:" + "F" * 64)
WORDS = st.sampled_from(
    [*DURATION_LIKE, *RUNG_LIKE, *CHOICES, *LABEL_LIKE, *URI_LIKE, *DIGEST_LIKE]
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS, TEXT)
JUNK = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("abc"), inner, max_size=2)
    ),
    max_leaves=4,
)

DURATIONS = st.builds(
    "{}{}".format, st.sampled_from(["1", "250", "0.5", "2.125"]), st.sampled_from(["ms", "s", "m"])
)
LABELS = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,8}[a-z0-9])?", fullmatch=True)
URIS = st.builds("{}{}".format, st.sampled_from(["file:", "http://", "https://"]), LABELS)
NAMES = TEXT.filter(bool)


def section(**fields):
    """An object of which each field may be left out."""
    return st.fixed_dictionaries({}, optional=fields)


def keyed(items):
    """A list whose items differ by name."""
    return st.lists(items, max_size=3, unique_by=lambda item: item["name"])


def counts(most):
    return st.integers(1, most)


IMAGES = section(
    layout=st.sampled_from(["NCHW", "NHWC"]),
    scale=st.floats(1e-6, 10),
    mean=st.lists(st.floats(-10, 10), min_size=1, max_size=3),
    std=st.lists(st.floats(0.01, 10), min_size=1, max_size=3),
)
INPUTS = st.fixed_dictionaries(
    {"name": NAMES},
    optional={"shape": st.lists(st.integers(0, 4096), max_size=8), "image": IMAGES},
)
CLASSES = st.fixed_dictionaries(
    {"name": LABELS},
    optional={
        "runtime": st.just("onnxruntime"),
        "threads": counts(256),
        "offline": st.sampled_from(["Local", "Fail"]),
    },
)
SPECS = st.fixed_dictionaries(
    {
        "model": st.fixed_dictionaries(
            {"uri": URIS}, optional={"digest": st.just("sha256:" + "a1" * 32)}
        )
    },
    optional={
        "inputs": keyed(INPUTS),
        "calibration": st.fixed_dictionaries({"uri": URIS}),
        "mode": st.just("Split"),
        "split": section(maxSegments=counts(20), rung=st.sampled_from(["edge", "cut3-int8-zstd"])),
        "objective": section(quantile=st.floats(0.01, 0.99), deadline=DURATIONS),
        "quality": section(minTop1Agreement=st.floats(0, 1), maxError=st.floats(0, 9)),
        "privacy": st.sampled_from(["Open", "Masked", "Private"]),
        "wire": section(codecs=st.lists(st.sampled_from(CODECS), min_size=1, max_size=4)),
        "edge": section(classes=keyed(CLASSES).filter(bool)),
        "cloud": section(
            replicas=section(min=counts(9), max=counts(9)),
            threads=counts(256),
            maxBatch=counts(1024),
        ),
        "adapt": section(
            mode=st.sampled_from(["Auto", "Manual", "Paused"]),
            window=DURATIONS,
            hysteresis=st.floats(0, 0.9),
            cooldown=DURATIONS,
        ),
    },
)


def places(node):
    """Every (container, key) of a document."""
    children = node.items() if isinstance(node, dict) else enumerate(node)
    for key, child in children:
        yield node, key
        if isinstance(child, (dict, list)):
            yield from places(child)


@st.composite
def spoiled(draw):
    """A valid spec, of which up to two places were changed."""
    spec = draw(SPECS)
    for _ in range(draw(st.integers(0, 2))):
        found = list(places(spec))
        if not found:
            break
        container, key = draw(st.sampled_from(found))
        how = draw(st.sampled_from(["junk", "word", "number", "null", "drop", "add", "repeat"]))
        event(how)
        change(draw, container, key, how)
    return spec


def change(draw, container, key, how):
    """Change one place of a document."""
    replacements = {"junk": JUNK, "word": WORDS, "number": NUMBERS, "null": st.none()}
    if how in replacements:
        container[key] = draw(replacements[how])
    elif how == "drop":
        del container[key]
    elif isinstance(container, list):
        container.append(copy.deepcopy(container[key]))
    else:
        container[draw(st.sampled_from(["x", "rung", "max_batch", str(key).upper()]))] = draw(JUNK)


def verdict_of_pydantic(document):
    """None where the manifest is read, else why not."""
    try:
        parse_manifest(document, "test")
    except ManifestError as error:
        return str(error)
    return None


def verdict_of_the_api_server(server, document):
    """None where the resource is admitted, else why not."""
    try:
        server.request("POST", PATH, document, params=STRICT)
    except Refused as error:
        if error.code not in (400, 422):
            raise  # it refused the request, not the resource
        return error.message
    return None


def test_pydantic_and_the_api_server_give_the_same_verdict(hybrid):
    """Verify that no spec is taken by one and refused by the other."""
    seen = {True: 0, False: 0}

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(spoiled())
    def agree(spec):
        ours = verdict_of_pydantic(resource(spec))
        theirs = verdict_of_the_api_server(hybrid, resource(spec))
        seen[ours is None] += 1
        assert (ours is None) == (theirs is None), f"pydantic: {ours}\nAPI server: {theirs}"

    agree()
    assert min(seen.values()) > EXAMPLES / 10, seen
