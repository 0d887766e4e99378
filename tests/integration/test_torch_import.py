"""A PyTorch module becomes a bundle. Needs the `torch` extra; skipped without it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dovetail.bundle import Bundle
from dovetail.errors import ModelError
from dovetail_cli.in_process import run_rung
from dovetail_partitioner.partition import partition
from dovetail_partitioner.torch_import import export_torch

torch: Any = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.slow


def network() -> Any:
    """Convolutions with a skip and a dropout, seeded."""
    torch.manual_seed(0)

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Sequential(
                torch.nn.Conv2d(3, 16, 3, stride=2, padding=1),
                torch.nn.BatchNorm2d(16),
                torch.nn.ReLU(),
            )
            self.second = torch.nn.Conv2d(16, 16, 3, padding=1)
            self.drop = torch.nn.Dropout(0.5)
            self.last = torch.nn.Linear(16, 10)

        def forward(self, x: Any) -> Any:
            x = self.first(x)
            x = torch.relu(self.second(x) + x)
            return self.last(self.drop(x.mean(dim=(2, 3))))

    return Network().train()


def test_every_rung_of_a_module_answers_as_the_module(tmp_path: Path) -> None:
    """Exported as for inference, batch left free, and the module keeps its mode."""
    module = network()
    example = torch.randn(1, 3, 32, 32)

    path = export_torch(module, (example,), tmp_path / "network.onnx")
    made = partition(path, tmp_path / "bundle")

    assert module.training
    assert made.config.batch is not None
    batch = torch.randn(5, 3, 32, 32)
    want = module.eval()(batch).detach().numpy()
    [name], bundle = [spec.name for spec in made.config.inputs], Bundle(made.path)
    for rung in made.config.rungs:
        if rung.codec == "raw":
            [got] = run_rung(bundle, rung.id, {name: batch.numpy()}).outputs.values()
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())


def test_a_module_that_cannot_be_exported_is_a_typed_error(tmp_path: Path) -> None:
    """Control flow on data is refused by PyTorch, and said so; nothing is left."""

    class Branching(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x * 2 if x.sum() > 0 else x - 1

    with pytest.raises(ModelError, match="Branching"):
        export_torch(Branching(), (torch.randn(1, 4),), tmp_path / "out" / "model.onnx")
    assert not list(tmp_path.iterdir())
