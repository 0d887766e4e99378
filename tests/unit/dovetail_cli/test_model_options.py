"""Options that are read from text."""

import pytest
import typer

from dovetail_cli.model_options import dims, parse_image


def test_dimensions_are_bound_by_name_or_by_input_and_axis() -> None:
    """The last `=` separates: names may hold colons and equals signs."""
    assert dims(["h=224", "x:0:2=3", "a=b=7"]) == {"h": 224, "x:0:2": 3, "a=b": 7}
    assert dims(None) == {}


@pytest.mark.parametrize("text", ["h", "=3", "h=0", "h=-1", "h=x", "h="])
def test_a_dimension_that_does_not_parse_is_refused(text: str) -> None:
    """The message says what was expected."""
    with pytest.raises(typer.BadParameter, match="NAME=SIZE"):
        dims([text])


def test_an_image_is_declared_in_words() -> None:
    """Fractions, lists and the layout are read; what is left out keeps its default."""
    image = parse_image("input:0 scale=1/255 mean=0.485,0.456,0.406 std=0.2,0.2,0.3 layout=NHWC")

    assert image is not None
    assert image.input == "input:0"
    assert image.scale == pytest.approx(1 / 255)
    assert image.mean == (0.485, 0.456, 0.406)
    assert image.layout == "NHWC"
    assert parse_image("x").std == (1.0,)  # type: ignore[union-attr]
    assert parse_image(None) is None


@pytest.mark.parametrize(
    "text", ["x scale=1/0", "x scale=big", "x layout=HWC", "x mean", "x colour=red"]
)
def test_an_image_that_does_not_parse_is_refused(text: str) -> None:
    """Unknown keys, bad figures and bad layouts are usage errors."""
    with pytest.raises(typer.BadParameter, match="NAME scale"):
        parse_image(text)
