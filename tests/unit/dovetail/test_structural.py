"""The structural schema: what is translated, and what ends the build."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from dovetail.crd import render
from dovetail.errors import NotStructural
from dovetail.structural import read_docstring, structural

CRD = Path(__file__).parents[3] / "charts/dovetail/files/crds/hybriddeployments.dovetail.dev.yaml"
Word = Annotated[str, Field(max_length=9)]


class Inner(BaseModel):
    """What is inside.

    Attributes:
        word: a word.
    """

    word: Word = "hi"


def converted(kind, default=...):
    """The structural schema of one described field of a type."""

    class Outer(BaseModel):
        """Holds it.

        Attributes:
            it: what is tested.
        """

        it: kind = default

    return structural(Outer.model_json_schema(), "outer")["properties"]["it"]


def test_the_committed_definition_is_the_one_that_the_types_give():
    """Verify that nobody changed the types without `make crds`, nor the file by hand."""
    assert CRD.read_text() == render()


def test_a_reference_is_inlined_and_described_by_whoever_refers():
    """Verify that no `$ref` is left and that the nearest description wins."""
    node = converted(Inner, Inner())

    assert node["properties"]["word"]["description"] == "A word."
    assert node["description"] == "What is tested."
    assert node["default"] == {"word": "hi"}


def test_an_optional_field_is_one_that_may_be_left_out():
    """Verify that neither null nor a default of null is left."""
    node = converted(Word | None, None)

    assert node == {"description": "What is tested.", "type": "string", "maxLength": 9}


def test_a_constant_is_enforced_as_a_choice_of_one():
    """Verify that `const`, which the API server does not enforce, becomes `enum`."""
    assert converted(Literal["Split"])["enum"] == ["Split"]


def test_an_exclusive_bound_is_a_bound_and_a_flag():
    """Verify the form that structural schemas have for exclusive bounds."""
    node = converted(Annotated[float, Field(gt=0, lt=1)])

    assert (node["minimum"], node["exclusiveMinimum"]) == (0, True)
    assert (node["maximum"], node["exclusiveMaximum"]) == (1, True)


def test_a_list_says_how_it_merges():
    """Verify that a list that is no map is replaced as a whole."""
    node = converted(Annotated[tuple[Word, ...], Field(max_length=2)])

    assert node["x-kubernetes-list-type"] == "atomic"


def test_a_map_of_a_type_keeps_the_type_of_its_values():
    """Verify that free keys are allowed and free values are not."""
    node = converted(Annotated[dict[str, Word], Field(max_length=2)])

    assert node["additionalProperties"]["maxLength"] == 9


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (str, "a bound .maxLength"),
        (Annotated[tuple[int, ...], Field()], "a bound .maxItems"),
        (Annotated[tuple[str, ...], Field(max_length=2)], r"\[\]: string needs a bound"),
        (dict[str, Word], "a bound .maxProperties"),
        (tuple[int, int], "prefixItems has no structural form"),
        (Annotated[set[int], Field(max_length=2)], "uniqueItems has no structural form"),
        (Word | int, "a choice of types"),
        (Annotated[int, Field(multiple_of=3)], "multipleOf has no structural form"),
        (Annotated[dict, Field(max_length=2)], "a type for its values"),
        (Literal[1, "a"], "type None"),
    ],
)
def test_what_the_api_server_would_refuse_or_not_enforce_ends_the_build(kind, why):
    """Verify that the message names the field and the keyword."""
    with pytest.raises(NotStructural, match=rf"^outer\.it.*{why}"):
        converted(kind)


def test_a_field_without_a_description_ends_the_build():
    """Verify that nobody adds a field that `kubectl explain` cannot explain."""

    class Mute(BaseModel):
        """Says nothing of its field."""

        it: int = 1

    with pytest.raises(NotStructural, match=r"mute\.it: no description"):
        structural(Mute.model_json_schema(), "mute")


def test_a_docstring_is_prose_and_attributes_by_their_names_in_the_manifest():
    """Verify that a description over two lines is one, and names are as people write them."""
    lines = ["What it is.", "", "Attributes:", "    max_error: most of it,", "        at all."]
    text = "\n".join([*lines, "    b: two: it is."])

    assert read_docstring(text) == (
        "What it is.",
        {"maxError": "most of it, at all.", "b": "two: it is."},
    )
