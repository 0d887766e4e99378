"""Links and traces as a person writes them."""

from pathlib import Path

import pytest

from dovetail.errors import LinkError
from dovetail_cli.link import LinkSpec, load_trace, parse_link


@pytest.mark.parametrize(
    ("text", "want"),
    [
        pytest.param("20mbit,15ms", LinkSpec(2.5e6, 0.015), id="megabit"),
        pytest.param(" 0.5GBIT , 0.1s ", LinkSpec(62.5e6, 0.1), id="units-and-spaces"),
        pytest.param("300kbit,0ms", LinkSpec(37.5e3, 0.0), id="kilobit"),
        pytest.param("down", LinkSpec(mode="down"), id="down"),
        pytest.param("refuse", LinkSpec(mode="refuse"), id="refuse"),
    ],
)
def test_a_link_is_bytes_per_second_and_a_round_trip(text: str, want: LinkSpec) -> None:
    """Bits become bytes and the time stays the whole round trip."""
    assert parse_link(text) == want


@pytest.mark.parametrize("text", ["20mbit,15ms", "300kbit,1.5ms", "1.5gbit,0ms", "down", "refuse"])
def test_a_link_is_printed_the_way_it_is_read(text: str) -> None:
    """What the view prints can be given back to --link."""
    assert str(parse_link(text)) == text
    assert parse_link(str(parse_link(text))) == parse_link(text)


@pytest.mark.parametrize(
    "text", ["", "20mbit", "20,15", "fast,15ms", "20mbit,15", "1kbit,15ms", "20mbit,2m", "up,1ms,2"]
)
def test_what_is_not_a_link_is_refused_with_what_was_expected(text: str) -> None:
    """The message shows the text and how to write one."""
    with pytest.raises(LinkError, match=r"(expected|at least)") as caught:
        parse_link(text)

    assert repr(text) in str(caught.value)


def test_a_trace_holds_each_link_until_the_next_and_the_last_for_good(tmp_path: Path) -> None:
    """Times are looked up, comments and blank lines skipped."""
    path = tmp_path / "trace"
    path.write_text("# a tunnel\n0, 20mbit, 15ms\n\n10, down  # gone\n12.5, 1mbit, 60ms\n")

    trace = load_trace(path)

    seen = [str(trace.at(t)) for t in (0, 9.9, 10, 12.4, 12.5, 1e6)]
    assert seen == ["20mbit,15ms"] * 2 + ["down"] * 2 + ["1mbit,60ms"] * 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("", "empty trace", id="empty"),
        pytest.param("1, 20mbit, 15ms\n", "start at 0", id="does-not-start-at-zero"),
        pytest.param("0, down\n5, down\n5, down\n", ":3: times must", id="does-not-rise"),
        pytest.param("0, 20mbit\n", ":1: '0, 20mbit'", id="no-link"),
        pytest.param("soon, down\n", ":1: 'soon, down'", id="no-time"),
        pytest.param("nan, down\n", "start at 0", id="not-a-number"),
    ],
)
def test_a_broken_trace_names_its_line(tmp_path: Path, text: str, says: str) -> None:
    """The message says which line and what is wrong with it."""
    path = tmp_path / "trace"
    path.write_text(text)

    with pytest.raises(LinkError, match=says):
        load_trace(path)


def test_a_missing_trace_is_a_typed_error(tmp_path: Path) -> None:
    """No traceback for a name that was mistyped."""
    with pytest.raises(LinkError, match="cannot be read"):
        load_trace(tmp_path / "nowhere")
