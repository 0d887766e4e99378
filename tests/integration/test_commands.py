"""The commands `inspect`, `partition`, `verify` and `run`, as a user types them."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import helper
from tests.tiny_bundle import rows, write_tiny_bundle

from dovetail_cli.main import main

IMAGE = "x scale=1/255 mean=0 std=1"


@dataclass
class Said:
    """What a command left behind."""

    code: int
    out: str
    err: str


Command = Callable[..., Said]


@pytest.fixture
def dovetail(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command line in this process."""

    def run(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["dovetail", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    path = folder / "tiny.onnx"
    path.write_bytes(write_tiny_bundle(folder / "by-hand").model)
    np.savez(folder / "rows.npz", **rows(8))
    return path


@pytest.fixture(scope="module")
def bundle(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by the installed command, in a process of its own."""
    path = tmp_path_factory.mktemp("bundles") / "bundle"
    words = ["partition", model, "--bundle", path, "--calibration", model.parent / "rows.npz"]
    command = [Path(sys.executable).parent / "dovetail", *words, "--image", IMAGE, "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {"cloud", "edge"} <= {rung["id"] for rung in json.loads(done.stdout)["rungs"]}
    return path


def test_inspect_prints_one_line_a_rung(dovetail: Command, bundle: Path) -> None:
    """The table has a heading and the ladder; what was proved is said on stderr."""
    listed = json.loads(dovetail("inspect", bundle, "-o", "json").out)

    said = dovetail("inspect", bundle)

    heading, *lines = said.out.splitlines()
    assert said.code == 0
    assert heading.split()[:3] == ["RUNG", "UP", "DOWN"]
    assert [line.split()[0] for line in lines] == [rung["id"] for rung in listed["rungs"]]
    assert "8 rows, given" in said.err


def test_inspect_takes_a_model_and_leaves_nothing(
    dovetail: Command, model: Path, bundle: Path, tmp_path: Path
) -> None:
    """A model is cut in a folder of its own, with the profile that is given; a plot is written."""
    before = sorted(model.parent.rglob("*"))

    said = dovetail(
        "inspect", model, "--image", IMAGE, "--calibration", model.parent / "rows.npz",
        "--costs", bundle / "costs.json", "--plot", tmp_path / "map.html", "-o", "yaml",
    )  # fmt: skip

    assert said.code == 0
    assert said.out.startswith("model: tiny\n")
    assert "<svg" in (tmp_path / "map.html").read_text()
    assert sorted(model.parent.rglob("*")) == before


def test_a_plot_is_a_picture_or_a_page(dovetail: Command, bundle: Path, tmp_path: Path) -> None:
    """PNG and HTML are drawn, anything else is refused before the work."""
    assert dovetail("inspect", bundle, "--plot", tmp_path / "map.png").code == 0
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")

    said = dovetail("inspect", bundle, "--plot", tmp_path / "map.svg")

    assert said.code == 2
    assert said.err.startswith("error: ")
    assert not (tmp_path / "map.svg").exists()


def test_verify_says_which_rungs_hold(dovetail: Command, model: Path, bundle: Path) -> None:
    """With the rows of the proof every rung is judged, and exit 0 says that all hold."""
    said = dovetail(
        "verify", bundle, "--model", model, "--calibration", model.parent / "rows.npz", "-o", "json"
    )

    assert said.code == 0
    assert all(rung["holds"] for rung in json.loads(said.out)["rungs"])


def test_verify_fails_on_a_damaged_bundle(dovetail: Command, bundle: Path, tmp_path: Path) -> None:
    """A blob with another byte is exit 2 and a hint."""
    shutil.copytree(bundle, tmp_path / "copy")
    blob = max((tmp_path / "copy" / "blobs" / "sha256").iterdir(), key=lambda p: p.stat().st_size)
    blob.write_bytes(blob.read_bytes()[:-1] + b"\xff\xff")

    said = dovetail("verify", tmp_path / "copy")

    assert said.code == 2
    assert blob.name in said.err
    assert "hint: " in said.err


def test_run_answers_as_the_uncut_model(
    dovetail: Command, model: Path, bundle: Path, tmp_path: Path
) -> None:
    """Every lossless rung gives the model's answers to a batch, through head, codec and tail."""
    session = ort.InferenceSession(model)
    feed = rows(3)
    np.savez(tmp_path / "in.npz", **feed)
    want = dict(zip(["brightness", "scores"], session.run(None, feed), strict=True))
    listed = json.loads(dovetail("inspect", bundle, "-o", "json").out)["rungs"]

    for rung in (one["id"] for one in listed if one["codec"] in ("raw", "raw-zstd")):
        out = tmp_path / f"{rung}.npz"
        said = dovetail(
            "run", bundle, "--rung", rung, "--inputs", tmp_path / "in.npz", "--outputs", out
        )
        assert said.code == 0, said.err
        with np.load(out) as got:
            assert set(got.files) == set(want)
            for name, array in want.items():
                np.testing.assert_allclose(got[name], array, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param({"rung": "cut9"}, "not on the ladder", id="unknown rung"),
        pytest.param({"feed": {"z": np.zeros(1)}}, "unknown input", id="wrong name"),
        pytest.param({"feed": {"x": np.zeros((1, 3, 16, 16))}}, "float64", id="wrong dtype"),
        pytest.param(
            {"feed": {"x": np.zeros((1, 3, 9, 9), np.float32)}}, "shape", id="wrong shape"
        ),
        pytest.param({"feed": None}, "is not an .npz", id="no npz"),
    ],
)
def test_run_refuses_what_does_not_fit(
    dovetail: Command, bundle: Path, tmp_path: Path, change: dict[str, object], says: str
) -> None:
    """Each is exit 2 with a message, and no answer is written."""
    given = {"rung": "edge", "feed": rows(1), **change}
    if given["feed"] is None:
        (tmp_path / "in.npz").write_text("no")
    else:
        np.savez(tmp_path / "in.npz", **given["feed"])  # type: ignore[arg-type]

    said = dovetail(
        "run", bundle, "--rung", given["rung"], "--inputs", tmp_path / "in.npz",
        "--outputs", tmp_path / "out.npz",
    )  # fmt: skip

    assert said.code == 2
    assert says in said.err
    assert said.err.startswith("error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["in.npz"]


def broken_models(folder: Path, good: bytes) -> dict[str, Path]:
    """Models that must be refused."""
    graph = helper.make_graph(
        [helper.make_node("Frobnicate", ["x"], ["y"], domain="com.example")],
        "custom",
        [helper.make_tensor_value_info("x", 1, ["N", 4])],
        [helper.make_tensor_value_info("y", 1, ["N", 4])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    free = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "free",
        [helper.make_tensor_value_info("x", 1, ["N", "width"])],
        [helper.make_tensor_value_info("y", 1, ["N", "width"])],
    )
    contents = {
        "text": b"# not a model",
        "truncated": good[: len(good) // 2],
        "custom": helper.make_model(graph, opset_imports=opsets).SerializeToString(),
        "free": helper.make_model(free, opset_imports=opsets[:1], ir_version=8).SerializeToString(),
    }
    for name, data in contents.items():
        (folder / f"{name}.onnx").write_bytes(data)
    return {name: folder / f"{name}.onnx" for name in contents} | {
        "missing": folder / "missing.onnx"
    }


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("text", "text.onnx"),
        ("truncated", "error: "),
        ("missing", "missing.onnx"),
        ("custom", "Frobnicate"),
        ("free", "--dim"),
    ],
)
def test_a_model_that_cannot_be_cut_is_exit_2_and_nothing_written(
    dovetail: Command, model: Path, tmp_path: Path, kind: str, says: str
) -> None:
    """Not ONNX, truncated, missing, custom operators, unbound shapes."""
    (tmp_path / "models").mkdir()
    (tmp_path / "out").mkdir()
    path = broken_models(tmp_path / "models", model.read_bytes())[kind]

    said = dovetail("partition", path, "--bundle", tmp_path / "out" / "bundle")

    assert said.code == 2
    assert says in said.err
    assert said.out == ""
    assert not list((tmp_path / "out").iterdir())


def test_a_wrong_option_is_exit_2(dovetail: Command, model: Path, tmp_path: Path) -> None:
    """Usage errors are exit 2 too, and nothing starts."""
    assert dovetail("partition", model).code == 2
    assert dovetail("partition", model, "--bundle", tmp_path / "b", "--dim", "h").code == 2
    assert dovetail("inspect", tmp_path / "nothing").code == 2
    assert not list(tmp_path.iterdir())


def test_help_needs_no_heavy_room() -> None:
    """`dovetail --help` imports neither ONNX nor Ray."""
    code = (
        "import sys\n"
        "sys.argv = ['dovetail', '--help']\n"
        "from dovetail_cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'onnx', 'ray', 'onnxruntime', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
