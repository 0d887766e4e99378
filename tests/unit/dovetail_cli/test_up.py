"""What `dovetail up` and `dovetail infer` refuse before they start anything."""

import sys
from pathlib import Path

import pytest

from dovetail_cli.main import main

MANIFEST = """
apiVersion: dovetail.dev/v1alpha1
kind: HybridDeployment
metadata: {name: tiny}
spec: {model: {uri: "file:tiny.onnx"}}
"""


def _refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> str:
    """Run the command line, expect exit code 2 and nothing on stdout; returns stderr."""
    monkeypatch.setattr(sys, "argv", ["dovetail", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert printed.out == ""
    return printed.err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param(("--link", "fast"), "'fast' is not a link", id="link"),
        pytest.param(("--link", "1mbit,1ms", "--trace", "t"), "give one of them", id="both"),
        pytest.param(("--trace", "nowhere"), "cannot be read as a trace", id="trace"),
        pytest.param(("--for", "a while"), "not a duration", id="duration"),
        pytest.param(("--report", "x.pdf"), "ends in .html", id="report"),
        pytest.param(("--report", "nowhere/x.html"), "no folder nowhere", id="report-folder"),
        pytest.param(("--compare",), "--drive", id="compare-without-requests"),
        pytest.param(("--slowdown", "0.5"), "greater than or equal to 1", id="slowdown"),
    ],
)
def test_a_wrong_option_is_named_and_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    says: str,
) -> None:
    """Exit code 2, the option in the message, and no state directory."""
    monkeypatch.chdir(tmp_path)
    Path("up.yaml").write_text(MANIFEST)

    complaint = _refused(monkeypatch, capsys, "up", "up.yaml", *options)

    assert says in complaint
    assert [path.name for path in tmp_path.iterdir()] == ["up.yaml"]


def test_a_manifest_that_breaks_the_schema_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every wrong field is named."""
    path = tmp_path / "up.yaml"
    path.write_text(MANIFEST.replace("spec: {", 'spec: {privacy: "Secret", '))

    complaint = _refused(monkeypatch, capsys, "up", str(path))

    assert "spec.privacy" in complaint


def test_infer_says_what_is_wrong_with_its_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that is no .npz and a URL that is none."""
    path = tmp_path / "x.npz"
    path.write_text("no arrays")

    assert "not an .npz" in _refused(
        monkeypatch, capsys, "infer", "http://127.0.0.1:1", "--inputs", str(path)
    )
