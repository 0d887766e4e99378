"""Calibration rows, given and made up."""

from pathlib import Path

import numpy as np
import pytest

from dovetail.encoding import Image
from dovetail.errors import CalibrationError, ModelError
from dovetail.tensor import Array, TensorSpec
from dovetail_partitioner.rows import (
    GENERATED,
    first_row,
    from_pixels,
    generated_rows,
    given_rows,
    stack,
)

X = TensorSpec(name="x", dtype="float32", shape=("N", 4))
STATE = TensorSpec(name="state", dtype="float32", shape=(2, 1, 3))
IDS = TensorSpec(name="ids", dtype="int64", shape=("N", 6))


def arrays(count: int) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {
        "x": rng.normal(size=(count, 4)).astype(np.float32),
        "state": rng.normal(size=(count, 2, 1, 3)).astype(np.float32),
    }


def test_rows_keep_the_batch_dimension_and_drop_a_row_axis_in_front() -> None:
    """An input with a batch is split along it, one without along the axis in front."""
    given = arrays(3)

    rows = list(given_rows(given, [X, STATE]))

    assert [row["x"].shape for row in rows] == [(1, 4)] * 3
    assert [row["state"].shape for row in rows] == [(2, 1, 3)] * 3
    assert np.array_equal(rows[2]["x"][0], given["x"][2])


def test_a_row_axis_may_also_stand_before_the_batch() -> None:
    """[rows, 1, 4] and [rows, 4] are the same rows, with the same digest."""
    flat = arrays(3)
    deep = {**flat, "x": flat["x"][:, None]}

    assert given_rows(flat, [X, STATE]).digest == given_rows(deep, [X, STATE]).digest


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    """Files of a folder are joined by name, and give the digest of their rows in one file."""
    given = arrays(3)
    np.savez(tmp_path / "b.npz", **{name: array[2:] for name, array in given.items()})
    np.savez(tmp_path / "a.npz", **{name: array[:2] for name, array in given.items()})

    rows = given_rows(tmp_path, [X, STATE])

    assert rows.count == 3
    assert rows.digest == given_rows(given, [X, STATE]).digest
    assert not rows.generated


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param({"x": None}, "the model's inputs are", id="an input is missing"),
        pytest.param({"y": np.zeros((3, 1), np.float32)}, "the model's inputs are", id="unknown"),
        pytest.param({"x": np.zeros((3, 4))}, "float64", id="wrong dtype"),
        pytest.param({"x": np.zeros((3, 5), np.float32)}, r"\[1, 5\]", id="wrong size"),
        pytest.param({"x": np.zeros(3, np.float32)}, "expected", id="wrong rank"),
        pytest.param({"x": np.zeros((2, 4), np.float32)}, "numbers of rows", id="ragged"),
        pytest.param(
            {"x": np.zeros((3, 2, 4), np.float32)}, "batch 2, expected 1", id="rows of two"
        ),
    ],
)
def test_rows_that_do_not_fit_are_refused(change: dict[str, Array | None], says: str) -> None:
    """Every misfit is a typed error that names what was expected."""
    given = {k: v for k, v in {**arrays(3), **change}.items() if v is not None}

    with pytest.raises(CalibrationError, match=says):
        given_rows(given, [X, STATE])


def test_a_file_that_is_no_npz_is_refused(tmp_path: Path) -> None:
    """Text, a missing file and an empty folder are typed errors."""
    (tmp_path / "rows.npz").write_text("not a zip")
    (tmp_path / "empty").mkdir()

    for path in (tmp_path / "rows.npz", tmp_path / "missing.npz", tmp_path / "empty"):
        with pytest.raises(CalibrationError, match=path.name):
            given_rows(path, [X])


def test_the_first_row_keeps_an_axis_of_one(tmp_path: Path) -> None:
    """Known before the model is: one row of every array, whatever its rank."""
    given = arrays(3)
    np.savez(tmp_path / "rows.npz", **given)

    for source in (given, tmp_path / "rows.npz", tmp_path):
        row = first_row(source)
        assert {name: array.shape for name, array in row.items()} == {
            "x": (1, 4),
            "state": (1, 2, 1, 3),
        }
        assert np.array_equal(row["x"], given["x"][:1])


def test_no_rows_are_refused() -> None:
    """A file without a single row proves nothing."""
    with pytest.raises(CalibrationError, match="no rows"):
        given_rows({"x": np.zeros((0, 4), np.float32)}, [X])


def test_made_up_rows_follow_from_the_seed_alone() -> None:
    """The same model gets the same rows, another model others."""

    def model(row: dict[str, Array]) -> dict[str, Array]:
        return dict(row)

    first = generated_rows([X], None, "sha256:a", model)

    assert first.digest == generated_rows([X], None, "sha256:a", model).digest
    assert first.digest != generated_rows([X], None, "sha256:b", model).digest
    assert first.generated
    assert len({row["x"].tobytes() for row in first}) == GENERATED


def test_made_up_integers_stay_below_what_the_model_takes() -> None:
    """The largest index is found by trying; masks are ones."""
    table = np.zeros(300)
    mask = TensorSpec(name="attention_mask", dtype="int64", shape=("N", 6))

    def model(row: dict[str, Array]) -> dict[str, Array]:
        if row["ids"].max() >= len(table):
            raise ModelError("index out of range")
        return {}

    rows = list(generated_rows([IDS, mask], None, "sha256:a", model))

    top = max(int(row["ids"].max()) for row in rows)
    assert 128 <= top < len(table)
    assert all((row["attention_mask"] == 1).all() for row in rows)


def test_an_integer_that_is_a_size_stays_small() -> None:
    """A value that decides how large an answer is must not be tried up to 50 000."""
    tried = []

    def model(row: dict[str, Array]) -> dict[str, Array]:
        tried.append(int(row["ids"].max()))
        return {"y": np.zeros(tried[-1] + 1)}

    generated_rows([IDS], None, "sha256:a", model)

    assert max(tried) == 1


def test_a_model_that_takes_no_made_up_row_asks_for_real_ones() -> None:
    """Where trying fails the error says how to give rows."""

    def model(row: dict[str, Array]) -> dict[str, Array]:
        raise ModelError("never")

    with pytest.raises(CalibrationError, match="--calibration"):
        generated_rows([X], None, "sha256:a", model)


def test_made_up_images_are_8_bit_pixels_of_the_declared_scale() -> None:
    """A declared image is undone to whole pixel values, all within 0 to 255, and not flat."""
    spec = TensorSpec(name="x", dtype="float32", shape=("N", 3, 32, 32))
    image = Image(input="x", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))

    for row in generated_rows([spec], image, "sha256:a", dict):
        mean, std = (np.reshape(part, (1, 3, 1, 1)) for part in (image.mean, image.std))
        pixels = (row["x"] * std + mean) / image.scale
        assert np.allclose(pixels, np.rint(pixels), atol=1e-3)
        assert pixels.min() > -0.01
        assert pixels.max() < 255.01
        assert pixels.std() > 5


def test_pixels_become_the_declared_input() -> None:
    """x = (pixel * scale - mean) / std, channel by channel, in either layout."""
    pixels = np.array([[[[255]], [[0]], [[51]]]], np.uint8)
    image = Image(input="x", mean=(0.5, 0.0, 0.2), std=(0.5, 1.0, 0.1))

    first = from_pixels(image, pixels)
    last = from_pixels(
        image.model_copy(update={"layout": "NHWC"}), pixels.transpose(0, 2, 3, 1).copy()
    )

    assert np.allclose(first.reshape(-1), [1.0, 0.0, 0.0], atol=1e-6)
    assert np.allclose(last.reshape(-1), first.reshape(-1))


def test_rows_stack_along_the_batch_only_where_the_rest_is_equal() -> None:
    """A tensor without a batch must be the same in every row of a batch."""
    rows = list(given_rows(arrays(3), [X, STATE]))
    same = [{**row, "state": rows[0]["state"]} for row in rows]

    batch = stack(same, [X, STATE])

    assert stack(rows, [X, STATE]) is None
    assert batch is not None
    assert batch["x"].shape == (3, 4)
    assert np.array_equal(batch["state"], rows[0]["state"])
