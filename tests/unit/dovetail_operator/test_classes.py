"""What a status says of a class: figures that are renewed rarely, and a story that is not lost."""

import time

import pytest
from tests.tiny_bundle import write_tiny_bundle

from dovetail.api import parse_manifest
from dovetail.ladder import Parts
from dovetail.measure import Link, Sample, Window
from dovetail.status import ClassStatus, DevicesStatus, MoveStatus, duration
from dovetail_operator.classes import class_statuses, devices, moves_told
from dovetail_operator.hands import Hands
from dovetail_operator.ledger import Presence
from dovetail_operator.record import Record

KEY = "default/page"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture
def deployment():
    spec = {
        "model": {"uri": "https://models.example/page.onnx"},
        "quality": {"minTop1Agreement": 0, "maxError": 9},
        "adapt": {"mode": "Manual"},
        "split": {"rung": "cut1-int8"},
    }
    metadata = {"name": "page"}
    kind = {"apiVersion": "dovetail.dev/v1alpha1", "kind": "HybridDeployment"}
    return parse_manifest({**kind, "metadata": metadata, "spec": spec}, "test")


@pytest.fixture
def hands(tiny, deployment):
    made = Hands()
    made.ensure(deployment, 1, record(tiny))
    return made


def record(tiny):
    return Record.of("p", tiny.bundle.digest, tiny.bundle.config, tiny.costs)


def window(head, requests=20, rung="cut1-int8"):
    made = Window()
    for _ in range(requests):
        parts = Parts(head=head, encode=1e-4, network=2e-3, tail=1e-3)
        made.add(Sample(rung, parts, parts.total, "ok"))
    made.add_link(Link(0.001, 1e-9))
    return made


def status(hands, presence=None, before=None):
    (one,) = class_statuses(hands.get(KEY), presence, before or {})
    return one


def test_a_class_says_its_rung_its_cut_and_its_proof_before_anything_was_measured(hands, tiny):
    """Verify what follows from plan and bundle alone."""
    said = status(hands)

    assert said.rung == "cut1-int8"
    assert said.cut.tensors == tiny.bundle.config.crossing(1)
    assert said.cut.bytes_up == round(tiny.bundle.config.rung("cut1-int8").bytes_up)
    assert said.proof.max_error == tiny.bundle.config.rung("cut1-int8").max_error
    assert said.measured is None


def test_measured_latency_is_said_by_part_with_the_best_rung(hands):
    """Verify medians, shares of the rungs, and the counterfactual."""
    seen = window(0.010)
    seen.merge(window(0.020, requests=5, rung="edge"))

    hands.turn(KEY, {"default": seen}, time.time())

    measured = status(hands).measured
    assert measured.shares == {"cut1-int8": 80, "edge": 20}
    assert float(measured.latency.head.removesuffix("ms")) == pytest.approx(10, rel=0.05)
    assert measured.best.rung in {"edge", "cloud", "cloud-uint8", "cut1", "cut2", "cut2-int8-zstd"}
    assert measured.regret > 0


def test_figures_are_renewed_after_a_while_and_only_where_they_tell_something(hands):
    """Verify that steady traffic leaves the status as it is."""
    now = time.time()
    hands.turn(KEY, {"default": window(0.010)}, now)
    first = status(hands).measured

    hands.turn(KEY, {"default": window(0.030)}, now + 10)
    assert status(hands).measured == first
    for later in (80, 120, 160):
        hands.turn(KEY, {"default": window(0.0101)}, now + later)
    assert status(hands).measured == first
    hands.turn(KEY, {"default": window(0.030)}, now + 240)
    assert status(hands).measured != first


def test_what_was_told_is_told_again_by_an_operator_that_starts(hands, tiny, deployment):
    """Verify that moves and figures of an earlier process are kept until there are new ones."""
    hands.turn(KEY, {"default": window(0.010)}, time.time())
    move = MoveStatus.of(1e9, "edge", "cut1-int8", "Faster", "20 ms less")
    said = status(hands).model_copy(update={"moves": (move,)})
    before = {"default": said}

    anew = Hands()
    anew.ensure(deployment, 1, record(tiny), moves_told(before))

    assert status(anew, before=before).moves == (move,)
    assert status(anew, before=before).measured == said.measured


def test_the_last_contact_is_renewed_with_the_counts_alone():
    """Verify that a device that stays connected causes no writes."""
    said = devices(Presence(2, 2, 1000.0), None)

    assert devices(Presence(2, 2, 2000.0), said) == said
    gone = devices(Presence(2, 1, 2000.0), said)
    assert (gone.connected, gone.last_contact) == (1, "1970-01-01T00:33:20Z")
    assert devices(Presence(0, 0, 0.0), None) == DevicesStatus()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.00025, "0.25ms"), (0.0123, "12.3ms"), (1.5, "1500ms"), (0.0, "0.00ms")],
)
def test_a_time_has_three_digits_or_so(seconds, text):
    """Verify the form, and that the schema takes it."""
    assert duration(seconds) == text
    ClassStatus.model_validate(
        {
            "name": "a",
            "measured": {
                "at": "2026-01-01T00:00:00Z",
                "latency": {"total": text},
                "best": {"rung": "edge", "latency": text, "by": "Model"},
            },
        }
    )
