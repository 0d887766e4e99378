"""Without the `torch` extra the error says what to install."""

import sys
from pathlib import Path

import pytest

from dovetail.errors import MissingTool
from dovetail_partitioner.torch_import import export_torch


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Exit 3, the package that is missing, and the command that installs it."""
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "onnxscript", None)

    with pytest.raises(MissingTool, match=r"dovetail\[torch\]") as caught:
        export_torch(object(), (), tmp_path / "model.onnx")  # type: ignore[arg-type]
    assert caught.value.exit_code == 3
