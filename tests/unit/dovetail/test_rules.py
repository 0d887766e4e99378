"""Rules that are said once: what pydantic makes of them, and what it tells the API server."""

from typing import Annotated, ClassVar

import pytest
from pydantic import Field, ValidationError

from dovetail.rules import Checked, Keyed, Matches, Rule


class Item(Checked):
    name: str


class Thing(Checked):
    low: int = 0
    high: int = 1
    word: Annotated[str, Matches(r"^[a-z]+$", "must be small letters")] = "a"
    items: Annotated[tuple[Item, ...], Field(max_length=3), Keyed("name")] = ()

    rules: ClassVar = (
        Rule(lambda self: self.low <= self.high, "self.low <= self.high", "high is below low"),
        Rule(lambda self: self.low >= 0, "self.low >= 0", "low is below 0"),
    )


def test_every_broken_rule_is_named():
    """Verify that one reading tells a person all there is to change."""
    with pytest.raises(ValidationError, match="high is below low; low is below 0"):
        Thing(low=-1, high=-2)


def test_a_form_is_refused_in_words_and_to_the_last_character():
    """Verify that a last newline, which `$` of Python's lets pass, is not let pass."""
    with pytest.raises(ValidationError, match="must be small letters"):
        Thing(word="a\n")


def test_a_repeated_key_is_named():
    """Verify that a list that is a map holds each key once."""
    with pytest.raises(ValidationError, match="name 'x' is given more than once"):
        Thing(items=[{"name": "x"}, {"name": "x"}])


def test_a_null_is_the_same_as_nothing_but_only_where_a_field_is():
    """Verify that an unknown field is refused even when it is null."""
    assert Thing.model_validate({"low": None}) == Thing()
    with pytest.raises(ValidationError, match="nobody"):
        Thing.model_validate({"nobody": None})


def test_the_schema_carries_each_rule_with_its_message():
    """Verify that the API server is told what pydantic holds."""
    schema = Thing.model_json_schema()

    assert schema["x-kubernetes-validations"] == [
        {"rule": "self.low <= self.high", "message": "high is below low"},
        {"rule": "self.low >= 0", "message": "low is below 0"},
    ]
    assert schema["properties"]["word"]["x-kubernetes-validations"] == [
        {"rule": "self.matches(r'^[a-z]+$')", "message": "must be small letters"}
    ]
    assert schema["properties"]["items"]["x-kubernetes-list-map-keys"] == ["name"]
