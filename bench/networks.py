"""Real networks as bundles, made by `dovetail partition` itself and kept between runs.

A bundle is kept under a key of everything that could change it: the model, the rows, the options
and the source of the rooms that make it. So a run measures today's code, and a second run does not
cut eight networks again.
"""

import hashlib
import itertools
from dataclasses import dataclass
from functools import cache

import numpy as np
from examples.registry import cache_root, sha256
from tests.proving import models
from tests.proving.models import ProvingModel, Row

from bench.report import ROOT
from dovetail.bundle import Bundle
from dovetail.ladder import CostProfile, Ladder
from dovetail.runtime import session_options
from dovetail_partitioner.costs_file import COSTS_FILE, read_costs
from dovetail_partitioner.partition import DEFAULT_SEGMENTS, Options, partition
from dovetail_partitioner.whole import open_session

# Chosen before anything was measured: trained networks of several kinds with real inputs, and
# classic topologies whose weights had to be drawn.
TRAINED = ("page-orientation", "ppocr-det", "ppocr-rec", "ppocr-cls", "paraphrase-minilm")
DRAWN = ("squeezenet", "resnet50", "densenet121")


@dataclass(frozen=True)
class Cut:
    """A network, its bundle, and its rows.

    Attributes:
        name: name in the proving ground.
        source: the model's file, uncut.
        bundle: what `partition` wrote.
        costs: what it measured beside it.
        rows: real inputs, batch 1.
    """

    name: str
    source: ProvingModel
    bundle: Bundle
    costs: CostProfile
    rows: tuple[Row, ...]

    @property
    def ladder(self) -> Ladder:
        """The bundle's rungs, priced."""
        return Ladder.of(self.bundle.config, self.costs)


def find(name: str) -> ProvingModel:
    """A network of the proving ground; those of the onnx wheel with drawn weights."""
    return models.get(name) if name in models.NAMES else models.light_model(name, seeded=True)


def cut(name: str, *, segments: int = DEFAULT_SEGMENTS) -> Cut:
    """Partition a network, or take the bundle that the same code made of it before.

    Args:
        name: name in the proving ground.
        segments: most segments; 1 gives the uncut model with its input codecs.
    """
    source = find(name)
    rows = source.rows()
    folder = cache_root() / "bench" / f"{name}-{segments}-{_key(source, segments)}"
    if not (folder / COSTS_FILE).is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        partition(
            source.path(),
            folder,
            name=name,
            calibration={key: np.stack([row[key] for row in rows]) for key in rows[0]},
            options=Options(bind=source.bind, image=source.image, max_segments=segments),
        )
    return Cut(name, source, Bundle(folder), read_costs(folder / COSTS_FILE), tuple(rows))


def whole_answer(cut: Cut, number: int) -> Row:
    """What the uncut model answers to one of the rows."""
    session = open_session(cut.source.path(), session_options(threads=1, optimize=True))
    names = [spec.name for spec in cut.bundle.config.outputs]
    return dict(zip(names, session.run(names, dict(cut.rows[number])), strict=True))


def _key(source: ProvingModel, segments: int) -> str:
    sha = hashlib.sha256(f"{_sources()} {sha256(source.path())} {segments}".encode())
    for row in source.rows():
        for name, array in sorted(row.items()):
            sha.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()[:16]


@cache
def _sources() -> str:
    """Digest of the code that makes a bundle."""
    sha = hashlib.sha256()
    rooms = (ROOT / "core" / "dovetail", ROOT / "partitioner" / "dovetail_partitioner")
    for file in itertools.chain.from_iterable(sorted(room.glob("*.py")) for room in rooms):
        sha.update(file.read_bytes())
    return sha.hexdigest()
