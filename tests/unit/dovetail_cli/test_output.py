"""What commands print, and where."""

import json

import pytest
import yaml

from dovetail_cli.output import Format, Steps, columns, note, show, size

DOCUMENT = {"name": "seite", "rungs": [{"id": "edge", "share": 0.5}], "note": None}


def test_a_table_is_padded_columns_under_capital_headings() -> None:
    """Every column is as wide as its widest cell; lines have no trailing blanks."""
    text = columns(("RUNG", "UP"), [["edge", "0 B"], ["cut2-int8", "9.4 kB"]])

    assert text.splitlines() == ["RUNG        UP", "edge        0 B", "cut2-int8   9.4 kB"]


@pytest.mark.parametrize(
    ("form", "read"), [(Format.JSON, json.loads), (Format.YAML, yaml.safe_load)]
)
def test_json_and_yaml_hold_the_whole_document(
    form: Format, read: object, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a script reads is the document; the table is not made."""
    show(DOCUMENT, form, lambda: pytest.fail("a table was made"))

    assert read(capsys.readouterr().out) == DOCUMENT  # type: ignore[operator]


def test_notes_and_progress_leave_stdout_to_the_data(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever is not data goes to stderr; without a terminal each part is one line."""
    with Steps() as steps:
        for done in range(3):
            steps("measuring", done, 3)
        steps("proving", 0, 1)
    note("done")
    show(DOCUMENT, Format.TABLE, lambda: "RUNG")

    said = capsys.readouterr()
    assert said.out == "RUNG\n"
    assert said.err.splitlines() == ["measuring ...", "proving ...", "done"]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (9408, "9.4 kB"), (3e6, "3.0 MB")]
)
def test_sizes_count_in_thousands(count: float, text: str) -> None:
    """A kB is 1000 bytes, as on a link."""
    assert size(count) == text
