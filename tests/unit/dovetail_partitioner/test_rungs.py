"""Which rungs are candidates, and which of them are worth offering."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny_bundle import TinyBundle, write_tiny_bundle

from dovetail.bundle import BundleConfig
from dovetail.ladder import Ladder, RungCost, sweep
from dovetail_partitioner.rungs import best_at, candidates, choose


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


def rung(rung_id: str, cut: int, head: float, tail: float, size: float) -> RungCost:
    return RungCost(
        id=rung_id,
        cut=cut,
        codec="raw",
        head=head,
        encode=0.0,
        decode=0.0,
        tail=tail,
        bytes_up=size,
        bytes_down=4,
    )


@st.composite
def ladders(draw: st.DrawFn) -> Ladder:
    """Four segments; one to three rungs a cut, of any size."""
    seconds = draw(st.lists(st.floats(1e-4, 0.1), min_size=4, max_size=4))
    rungs = []
    for cut in range(4):
        for number in range(draw(st.integers(1, 3))):
            size = draw(st.floats(10, 1e6))
            rungs.append(
                rung(f"r{cut}.{number}", cut, sum(seconds[:cut]), sum(seconds[cut:]), size)
            )
    return Ladder(rungs=(*rungs, rung("edge", 4, sum(seconds), 0.0, 0.0)))


@settings(max_examples=20)
@given(ladders(), st.sets(st.integers(1, 3)))
def test_what_is_offered_is_within_two_percent_of_everything(
    ladder: Ladder, others: set[int]
) -> None:
    """Whatever link, device and privacy: the best that is offered is near the best there is."""
    raw = {0, *others}  # a cut may part what reads a second input late
    choice = choose(ladder, ("edge",), raw)
    offered = ladder.only(choice.rungs)

    assert choice.regret <= 0.02
    for barred in (set(), raw):
        inside = [r.id for r in ladder.rungs if r.cut not in barred]
        kept = [r for r in inside if r in choice.rungs]
        for at in sweep():
            best = ladder.only(inside).best(at).predict(at).total
            assert offered.only(kept).best(at).predict(at).total <= best * 1.02 + 1e-12


def test_a_rung_that_wins_nowhere_is_left_out() -> None:
    """More bytes at the same cut for nothing has no place on the ladder."""
    ladder = Ladder(
        rungs=(
            rung("cloud", 0, 0.0, 0.01, 1e5),
            rung("worse", 0, 0.0, 0.01, 2e5),
            rung("edge", 1, 0.01, 0.0, 0.0),
        )
    )

    assert choose(ladder, ("cloud", "edge"), [0]).rungs == {"cloud", "edge"}


def test_a_cut_that_leaks_the_input_is_not_offered_for_keeping_it() -> None:
    """A middle cut that is slower than all-cloud has a place only if raw input stays behind it."""
    ladder = Ladder(
        rungs=(
            rung("cloud", 0, 0.0, 0.01, 1e4),
            rung("cut1", 1, 0.001, 0.01, 1.2e4),
            rung("edge", 2, 0.01, 0.0, 0.0),
        )
    )

    assert "cut1" in choose(ladder, ("cloud", "edge"), [0]).rungs
    assert "cut1" not in choose(ladder, ("cloud", "edge"), [0, 1]).rungs


def test_what_is_always_offered_stays_though_it_never_wins() -> None:
    """All-edge and all-cloud are on every ladder."""
    ladder = Ladder(
        rungs=(rung("cloud", 0, 0.0, 9.0, 1e9), rung("edge", 1, 1e-3, 0.0, 0.0)),
    )

    assert "cloud" in choose(ladder, ("cloud", "edge"), [0]).rungs


def test_the_shares_of_the_sweep_add_up_to_one() -> None:
    """Every condition has exactly one fastest rung."""
    ladder = Ladder(
        rungs=(rung("cloud", 0, 0.0, 0.02, 1e5), rung("edge", 1, 0.02, 0.0, 0.0)),
    )

    best = best_at(ladder)

    assert math.fsum(where.share for where in best.values()) == pytest.approx(1.0)
    assert best["edge"].edge is not None
    assert best["edge"].edge[0] == 1.0
    assert best["cloud"].edge is not None
    assert best["cloud"].edge[0] > 1.0


def test_pixel_codecs_are_for_declared_images_only(tiny: TinyBundle) -> None:
    """JPEG and pixel uint8 stand at the input of an image, and nowhere else."""
    config = tiny.bundle.config
    plain = config.model_copy(update={"image": None})

    assert {"cloud-jpeg90", "cloud-uint8"} <= candidates(config, None).keys()
    assert not {"cloud-jpeg90", "cloud-uint8"} & candidates(plain, None).keys()
    assert not any("jpeg" in codec for cut, codec in candidates(config, None).values() if cut)


def test_codecs_without_tables_are_no_candidates(tiny: TinyBundle) -> None:
    """The tiny bundle has int8 tables and no int4 ones."""
    found = candidates(tiny.bundle.config, None)

    assert "cut1-int8" in found
    assert "cut1-int4" not in found


def test_only_allowed_codecs_are_candidates_beside_edge_and_cloud(tiny: TinyBundle) -> None:
    """A manifest that allows fp16 alone gets no other."""
    found = candidates(tiny.bundle.config, ["fp16"])

    assert found.keys() == {"edge", "cloud", "cloud-fp16", "cut1-fp16", "cut2-fp16"}


def integers(config: BundleConfig) -> BundleConfig:
    spec = config.spec("a").model_copy(update={"dtype": "int32"})
    wider = config.spec("b").model_copy(update={"dtype": "float16"})
    fields = {name: getattr(config, name) for name in BundleConfig.model_fields}
    return BundleConfig(**{**fields, "tensors": (spec, wider), "affine": {}})


def test_integers_cross_as_they_are_and_half_floats_are_not_halved(tiny: TinyBundle) -> None:
    """Only codecs that change something are candidates."""
    found = candidates(integers(tiny.bundle.config), None)

    at = {cut: {codec for c, codec in found.values() if c == cut} for cut in (1, 2)}
    assert at[1] == {"raw", "raw-zstd"}
    assert at[2] == {"raw", "raw-zstd"}
