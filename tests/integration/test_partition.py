"""From a model to a proved bundle, on a small network with everything in it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper
from tests.tiny_bundle import rows, write_tiny_bundle

from dovetail.api import Quality
from dovetail.bundle import Bundle, BundleConfig, BundleWriter
from dovetail.encoding import Image
from dovetail.errors import (
    BundleCorrupt,
    BundleError,
    CalibrationError,
    CostsError,
    ModelNotReadable,
    ProofVacuous,
)
from dovetail.ladder import Ladder
from dovetail_partitioner.costs_file import COSTS_FILE, write_costs
from dovetail_partitioner.partition import Options, PartitionResult, partition
from dovetail_partitioner.verify import RungCheck, verify

OPTIONS = Options(image=Image(input="x"), max_segments=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    path = folder / "tiny.onnx"
    path.write_bytes(write_tiny_bundle(folder / "by-hand", side=32, width=16).model)
    return path


@pytest.fixture(scope="module")
def made(model: Path, tmp_path_factory: pytest.TempPathFactory) -> PartitionResult:
    return partition(model, tmp_path_factory.mktemp("bundles") / "bundle", options=OPTIONS)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def calibration(count: int = 6) -> dict[str, np.ndarray]:
    return rows(count, side=32)


def checks(path: Path, **given: object) -> dict[str, RungCheck]:
    return {check.id: check for check in verify(path, **given).rungs}  # type: ignore[arg-type]


def test_every_rung_of_the_ladder_holds(made: PartitionResult, model: Path) -> None:
    """A fresh bundle verifies, against its segments joined and against the model's file."""
    assert {"edge", "cloud"} <= set(made.ladder.ids())
    for given in ({}, {"model": model}):
        found = checks(made.path, **given)
        assert found.keys() == set(made.ladder.ids())
        assert all(check.holds for check in found.values())


def test_the_result_is_what_the_bundle_says(made: PartitionResult) -> None:
    """Digest, ladder and cost profile can be read back."""
    bundle = Bundle(made.path)

    assert bundle.digest == made.digest
    assert bundle.config == made.config
    assert made.costs.bundle == made.digest
    assert Ladder.of(bundle.config, made.costs) == made.ladder
    assert made.config.batch == "N"
    assert made.proof.generated


def test_rungs_are_listed_by_cut_then_bytes(made: PartitionResult) -> None:
    """The order of a ladder is fixed."""
    order = [(rung.cut, rung.bytes_up) for rung in made.config.rungs]

    assert order == sorted(order)


def test_the_same_model_profile_and_rows_give_the_same_bytes(
    made: PartitionResult, model: Path, tmp_path: Path
) -> None:
    """Every file of the bundle is equal, the cost profile beside it too."""
    again = partition(model, tmp_path / "again", costs=made.path / COSTS_FILE, options=OPTIONS)

    assert again.digest == made.digest
    assert files(again.path) == files(made.path)


def test_other_rows_make_another_bundle_of_the_same_segments(
    made: PartitionResult, model: Path, tmp_path: Path
) -> None:
    """Calibration changes tables and proof, never the model's pieces."""
    other = partition(
        model,
        tmp_path / "other",
        calibration=calibration(),
        costs=made.path / COSTS_FILE,
        options=OPTIONS,
    )

    assert other.digest != made.digest
    assert not other.proof.generated
    assert [segment.nodes for segment in other.config.segments] == [
        segment.nodes for segment in made.config.segments
    ]


def test_lossy_rungs_are_not_judged_without_the_rows_they_were_proved_on(
    model: Path, tmp_path: Path
) -> None:
    """Given rows are not in the bundle: without them only lossless rungs are judged."""
    bundle = partition(model, tmp_path / "b", calibration=calibration(), options=OPTIONS)

    blind = checks(bundle.path)
    seeing = checks(bundle.path, calibration=calibration())

    lossy = {rung.id for rung in bundle.ladder.rungs if rung.codec not in ("raw", "raw-zstd")}
    assert lossy
    assert {rung for rung, check in blind.items() if check.holds is None} == lossy
    assert all(check.holds for check in seeing.values())


def sequence_model() -> bytes:
    """Two large products of a [N, 4, 64] sequence: quantities, no scores."""
    rng = np.random.default_rng(0)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("Tanh", ["h"], ["t"]),
            helper.make_node("MatMul", ["t", "w"], ["y"]),
        ],
        "sequence",
        [helper.make_tensor_value_info("x", 1, ["N", 4, 64])],
        [helper.make_tensor_value_info("y", 1, ["N", 4, 64])],
        [numpy_helper.from_array(rng.normal(size=(64, 64)).astype(np.float32), "w")],
    )
    opsets = [helper.make_opsetid("", 17)]
    data: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return data


def test_a_codec_beyond_quality_is_not_offered_and_the_reason_is_kept(tmp_path: Path) -> None:
    """int8 wins on a slow link; where hardly any error is allowed it is not on the ladder."""
    codecs = ("raw", "int8")
    strict = Options(quality=Quality(max_error=1e-6), codecs=codecs)
    quick = partition(sequence_model(), tmp_path / "quick", options=Options(codecs=codecs))
    # The same cuts, 5 ms a segment: on a slow link a slow device sends its input, as few bytes.
    times = tuple(5e-3 for _ in quick.costs.segments)
    slow = quick.costs.model_copy(update={"segments": times, "whole": sum(times)})
    write_costs(tmp_path / "slow.json", slow)

    free = partition(
        sequence_model(),
        tmp_path / "free",
        costs=tmp_path / "slow.json",
        options=Options(codecs=codecs),
    )
    held = partition(
        sequence_model(), tmp_path / "held", costs=tmp_path / "slow.json", options=strict
    )

    assert "cloud-int8" in free.ladder.ids()
    assert {rung.codec for rung in held.ladder.rungs} == {"raw"}
    assert "at most 1e-06 wanted" in held.proof.dropped["cloud-int8"]


def test_a_changed_table_does_not_verify(made: PartitionResult, tmp_path: Path) -> None:
    """A bundle with right digests but a wrong scale is found out by its answers."""
    config = made.config
    wrong = {
        family: {
            name: table.model_copy(update={"scale": tuple(s * 40 for s in table.scale)})
            for name, table in tables.items()
        }
        for family, tables in config.affine.items()
    }
    with BundleWriter(tmp_path / "wrong") as writer:
        old = Bundle(made.path)
        for digest in {*old.needs(0, len(config.segments)), config.proof}:
            writer.add(old.read(digest))
        writer.commit(config.model_copy(update={"affine": wrong}))

    found = checks(tmp_path / "wrong")

    tables = [rung for rung in config.rungs if re.match("int[48]", rung.codec)]
    assert tables
    assert any(found[rung.id].holds is False for rung in tables)
    assert all(found[rung.id].holds for rung in config.rungs if rung.codec == "raw")


def test_a_changed_blob_does_not_verify(made: PartitionResult, tmp_path: Path) -> None:
    """One flipped bit in the weights is a corrupt bundle."""
    copy = tmp_path / "copy"
    for name, data in files(made.path).items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(data)
    digest = next(group.data for group in made.config.groups if group.data)
    blob = Bundle(copy).blob_path(digest)
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(data)

    with pytest.raises(BundleCorrupt, match=digest):
        verify(copy)


def test_a_bundle_of_another_model_does_not_verify(made: PartitionResult, tmp_path: Path) -> None:
    """`--model` must be the file the bundle was made from."""
    other = tmp_path / "other.onnx"
    other.write_bytes(write_tiny_bundle(tmp_path / "by-hand", seed=5).model)

    with pytest.raises(BundleError, match="was made from model"):
        verify(made.path, model=other)


@pytest.fixture
def standing(made: PartitionResult, tmp_path: Path) -> Iterator[Path]:
    """A folder with an old bundle in it; the test must leave it as it is."""
    target = tmp_path / "place" / "bundle"
    for name, data in files(made.path).items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(data)
    before = files(tmp_path / "place")
    yield target
    assert files(tmp_path / "place") == before


def constant_model() -> bytes:
    """Answers zeros to everything."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "zero"], ["y"])],
        "constant",
        [helper.make_tensor_value_info("x", 1, ["N", 4])],
        [helper.make_tensor_value_info("y", 1, ["N", 4])],
        [numpy_helper.from_array(np.zeros(1, np.float32), "zero")],
    )
    opsets = [helper.make_opsetid("", 17)]
    data: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return data


def test_a_vacuous_proof_is_refused_and_nothing_is_written(standing: Path) -> None:
    """A model that answers one constant gets no bundle; the old one stays."""
    with pytest.raises(ProofVacuous):
        partition(constant_model(), standing)


def test_a_file_that_is_no_model_leaves_nothing(standing: Path) -> None:
    """Bytes that are not ONNX are a typed error."""
    with pytest.raises(ModelNotReadable):
        partition(b"not a model", standing)


def test_rows_that_do_not_fit_leave_nothing(standing: Path, model: Path) -> None:
    """A calibration of another model is a typed error."""
    with pytest.raises(CalibrationError):
        partition(model, standing, calibration={"z": np.zeros((2, 3), np.float32)})


def test_a_profile_of_other_segments_leaves_nothing(
    standing: Path, model: Path, made: PartitionResult, tmp_path: Path
) -> None:
    """Times of a chain of cuts cannot be used for another."""
    document = json.loads((made.path / COSTS_FILE).read_bytes())
    costs = tmp_path / "costs.json"
    costs.write_text(json.dumps({**document, "cuts": [["elsewhere"]]}))

    with pytest.raises(CostsError, match="other segments"):
        partition(model, standing, costs=costs, options=OPTIONS)


@pytest.mark.parametrize("text", ["{", '{"format": "dovetail.dev/costs.v2"}', "[]"])
def test_a_damaged_profile_leaves_nothing(
    standing: Path, model: Path, tmp_path: Path, text: str
) -> None:
    """A file that is no cost profile is a typed error."""
    (tmp_path / "costs.json").write_text(text)

    with pytest.raises(CostsError, match=r"costs\.json"):
        partition(model, standing, costs=tmp_path / "costs.json")


def test_an_image_that_does_not_fit_leaves_nothing(standing: Path, model: Path) -> None:
    """An image declared for an input that is not there is a typed error."""
    with pytest.raises(BundleError, match="image"):
        partition(model, standing, options=Options(image=Image(input="picture")))


def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path: Path, model: Path) -> None:
    """Whatever else stands there is left alone."""
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.txt").write_text("ten years")

    with pytest.raises(BundleError, match="not a bundle"):
        partition(model, tmp_path / "papers")
    assert files(tmp_path) == {"papers/thesis.txt": b"ten years"}


def test_a_model_with_random_ops_is_edge_or_cloud_only(tmp_path: Path) -> None:
    """Nothing is claimed of answers that differ each time: one segment, two rungs, a note."""
    graph = helper.make_graph(
        [
            helper.make_node("RandomNormalLike", ["x"], ["noise"]),
            helper.make_node("Add", ["x", "noise"], ["y"]),
        ],
        "random",
        [helper.make_tensor_value_info("x", 1, ["N", 8])],
        [helper.make_tensor_value_info("y", 1, ["N", 8])],
    )
    opsets = [helper.make_opsetid("", 17)]
    data = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()

    made = partition(data, tmp_path / "random")

    assert made.ladder.ids() == ("cloud", "edge")
    assert made.proof.exact is None
    assert any("RandomNormalLike" in text for text in made.notes)
    assert all(check.holds for check in checks(made.path).values())


def test_a_draft_leaves_no_trace(made: PartitionResult) -> None:
    """Every blob in the folder is named by the manifest, or is the manifest."""
    bundle = Bundle(made.path)
    found = {f"sha256:{path.name}" for path in bundle.blob_dir.iterdir()}

    assert found == {*bundle.blobs, bundle.digest}
    assert isinstance(bundle.config, BundleConfig)
