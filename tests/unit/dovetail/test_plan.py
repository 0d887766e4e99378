"""Plans."""

import pytest
from pydantic import ValidationError

from dovetail.ladder import RungCost
from dovetail.plan import Plan, allowed_by_privacy, application_name


def rung(name: str) -> RungCost:
    return RungCost(
        id=name, cut=0, codec="raw", head=0, encode=0, decode=0, tail=0, bytes_up=0, bytes_down=0
    )


def plan(**changes: object) -> Plan:
    return Plan.model_validate(
        {
            "generation": 3,
            "deployment": "default/reader",
            "bundle": "sha256:" + "ab" * 32,
            "device_class": "camera",
            "default": "edge",
            "ladder": (rung("cloud"), rung("edge")),
            **changes,
        }
    )


def test_a_plan_survives_its_journey_as_json():
    """Verify the form in which a plan travels."""
    sent = plan(deadline=0.2, pinned=True, privacy="Masked", fallback="Fail")

    text = sent.model_dump_json(by_alias=True)

    assert Plan.model_validate_json(text) == sent
    assert '"deviceClass":"camera"' in text


@pytest.mark.parametrize(
    "changes",
    [
        {"generation": 0},
        {"default": "cut1"},
        {"ladder": ()},
        {"deadline": 0.0},
        {"deadline": -1.0},
        {"deadline": float("inf")},
        {"deadline": float("nan")},
        {"privacy": "Secret"},
        {"fallback": "Queue"},
        {"surprise": 1},
    ],
    ids=str,
)
def test_a_plan_that_makes_no_sense_is_refused(changes):
    """Verify that an edge never holds a plan it could not follow."""
    with pytest.raises(ValidationError):
        plan(**changes)


def test_the_rungs_of_a_plan_are_the_allowed_ones():
    """Verify order and ids."""
    assert plan().allowed == plan().rungs.ids() == ("cloud", "edge")


def test_an_application_is_named_by_deployment_and_version():
    """Verify the Serve application's name."""
    assert plan().application == "default--reader--" + "ab" * 6
    assert plan().application == application_name("default/reader", plan().bundle)


@pytest.mark.parametrize(
    ("privacy", "name", "reads_input", "allowed"),
    [
        ("Open", "cloud", True, True),
        ("Masked", "cloud", True, False),
        ("Masked", "cut2", True, False),
        ("Masked", "cut2", False, True),
        ("Masked", "edge", True, True),
        ("Private", "cut2", False, False),
        ("Private", "cloud", True, False),
        ("Private", "edge", True, True),
    ],
)
def test_a_privacy_class_permits_only_what_it_says(privacy, name, reads_input, allowed):
    """Verify that raw input stays under Masked and everything stays under Private."""
    assert allowed_by_privacy(privacy, rung(name), reads_input=reads_input) is allowed
