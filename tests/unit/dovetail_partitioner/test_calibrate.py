"""Quantisation tables, through the codecs that use them."""

from pathlib import Path

import numpy as np
import pytest
from tests.tiny_bundle import TinyBundle, rows, segments_of, write_tiny_bundle

from dovetail.codecs import CodecSet
from dovetail.encoding import Affine
from dovetail.tensor import Array
from dovetail_partitioner import calibrate
from dovetail_partitioner.calibrate import Tables, Walks, fit_tables, walk
from dovetail_partitioner.progress import silent
from dovetail_partitioner.rows import given_rows


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


def fitted(tiny: TinyBundle, data: dict[str, Array], *, image: bool = True) -> Tables:
    config = tiny.bundle.config
    if not image:
        config = config.model_copy(update={"image": None})
    calibration = given_rows(data, config.inputs)
    return fit_tables(config, Walks(config, segments_of(tiny), calibration), report=silent)


def error(
    tiny: TinyBundle, tables: Tables, codec: str, data: dict[str, Array], *, cut: int = 1
) -> float:
    """Summed squared error of every crossing tensor at a cut through the codec."""
    config = tiny.bundle.config.model_copy(update={"affine": tables, "image": None})
    codecs, total = CodecSet(config), 0.0
    names = config.crossing(cut)
    for row in given_rows(data, config.inputs):
        env = dict(walk(config, segments_of(tiny), row))[cut]
        back = codecs.unpack(codec, names, tuple(codecs.pack(codec, env, names)))
        total += sum(float(np.square(back[name] - env[name]).sum()) for name in names)
    return total


def test_every_crossing_float_has_a_table_of_its_channels(tiny: TinyBundle) -> None:
    """int8 and int4 tables cover what crosses at any cut, one scale a channel of axis 1."""
    tables = fitted(tiny, rows(4))

    crossing = {name for cut in range(3) for name in tiny.bundle.config.crossing(cut)}
    assert set(tables) == {"int8", "int4"}
    for family in tables.values():
        assert set(family) == crossing
        assert family["a"].axis == 1
        assert len(family["a"].scale) == tiny.bundle.config.spec("a").shape[1]


def test_an_input_that_is_no_image_has_an_8_bit_table_over_the_whole_tensor(
    tiny: TinyBundle,
) -> None:
    """uint8 of a plain input takes one scale that reaches from its least to its most."""
    data = rows(4)

    table = fitted(tiny, data, image=False)["uint8"]["x"]

    assert table.axis is None
    assert table.scale[0] == pytest.approx(np.ptp(data["x"]) / 255, rel=1e-5)


def test_int8_is_within_half_a_step_of_everything_calibrated_on(tiny: TinyBundle) -> None:
    """With 8 bits nothing that was seen is clipped."""
    data = rows(4)
    tables = fitted(tiny, data)
    config = tiny.bundle.config.model_copy(update={"affine": tables})
    codec = CodecSet(config).of("int8", "a")

    steps = np.asarray(tables["int8"]["a"].scale).reshape(1, -1, 1, 1)
    for row in given_rows(data, config.inputs):
        a = dict(walk(config, segments_of(tiny), row))[1]["a"]
        back = codec.decode(bytes(codec.encode(a)), a.shape)
        # Half a step for the code, half for the zero, which is a whole code too.
        assert (np.abs(back - a) <= steps * 1.001).all()


def test_4_bit_ranges_give_up_rare_peaks(tiny: TinyBundle) -> None:
    """The chosen clipping has a smaller error than the whole range does."""
    data = rows(6)
    data["x"][0, :, 3, 3] = 40.0  # one pixel far beyond all others
    tables = fitted(tiny, data)
    whole = {
        name: Affine(
            axis=table.axis,
            scale=tuple(scale * 17 for scale in table.scale),  # 255 codes as 15
            zero=tuple(round(zero / 17) for zero in table.zero),
        )
        for name, table in tables["int8"].items()
    }

    chosen = error(tiny, tables, "int4", data)

    assert chosen < 0.9 * error(tiny, {"int4": whole}, "int4", data)


@pytest.mark.parametrize("value", [0.0, 0.5, -3.0, 1e-30])
def test_channels_that_never_vary_cross_unchanged(tiny: TinyBundle, value: float) -> None:
    """A constant survives 4 and 8 bits; no scale is 0, infinite or NaN."""
    flat = {"x": np.full((4, 3, 16, 16), value, np.float32)}
    tables = fitted(tiny, flat, image=False)

    for codec, family in tables.items():
        assert error(tiny, {codec: family}, codec, flat, cut=0) < 1e-9
        for table in family.values():
            assert np.isfinite(table.scale).all()
            assert (np.asarray(table.scale) > 0).all()


def test_a_tensor_with_few_values_a_channel_gets_one_scale(tmp_path: Path) -> None:
    """One row of a 1x1 map is no ground for a range a channel."""
    tiny = write_tiny_bundle(tmp_path / "tiny", side=2, width=64)

    few = fitted(tiny, rows(1, side=2))
    many = fitted(tiny, rows(8, side=2))

    assert few["int8"]["a"].axis is None
    assert many["int8"]["a"].axis == 1


@pytest.mark.parametrize("room", [0, 20_000, 1 << 30])
def test_what_is_kept_of_a_walk_is_what_a_walk_gives(
    tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """With room for no row, for some or for all, every pass yields the same tensors in order."""
    monkeypatch.setattr(calibrate, "_KEPT_BYTES", room)
    config, runtime = tiny.bundle.config, segments_of(tiny)
    calibration = given_rows(rows(6), config.inputs)
    walks = Walks(config, runtime, calibration)

    for _ in range(2):
        for row, steps in zip(calibration, walks, strict=True):
            for (cut, env), (at, kept) in zip(walk(config, runtime, row), steps, strict=True):
                assert cut == at
                assert {n: a.tobytes() for n, a in env.items()} == {
                    n: a.tobytes() for n, a in kept.items()
                }
