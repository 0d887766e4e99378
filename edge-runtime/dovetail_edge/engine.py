"""The device: one resource that runs segments and encodes crossing tensors, one caller at a time.

Why one at a time: a device has its cores once. Two requests that run segments together each take
twice as long, neither finishes earlier, and every measured time is wrong; a request that waits on
the network holds nothing here, so the next head runs while the last tail does. The trade-off is
that a large batch is not overtaken.

A slow device is simulated in the open (`slowdown`): after each unit the worker sleeps k-1 times
the unit's own measured time, which frees the core as another machine would. Own time is processor
time where one thread computes: a core that another process took for a while would otherwise be
lost k times. Nothing predicts with k; what is measured through it is what every estimate is made
from.

The engine also learns what its segments take, because a continuation must start early enough to
meet a deadline. Mean and deviation are smoothed as a TCP sender smooths round trips.

Reference: RFC 6298 (smoothed mean and deviation), section 2.
"""

import threading
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from dovetail.bundle import Bundle
from dovetail.codecs import CodecSet
from dovetail.errors import InvalidTensor
from dovetail.runtime import SegmentRuntime, Unit
from dovetail.tensor import Array, TensorSpec
from dovetail.wire import WireTensor

_GAIN = 1 / 8
_SPREAD_GAIN = 1 / 4


@dataclass(slots=True)
class Smoothed:
    """Smoothed mean and mean deviation of a duration, in seconds."""

    mean: float = 0.0
    spread: float = 0.0
    seen: bool = False

    def add(self, seconds: float) -> None:
        """Fold in one measurement."""
        if not self.seen:
            self.mean, self.spread, self.seen = seconds, seconds / 2, True
            return
        self.spread += _SPREAD_GAIN * (abs(seconds - self.mean) - self.spread)
        self.mean += _GAIN * (seconds - self.mean)


class Engine:
    """A bundle's segments on this device.

    Args:
        bundle: the bundle; its blobs have been verified.
        cuts: cuts that must stay possible.
        whole: whether all segments are loaded, so that the device can answer alone; otherwise
            only those before the deepest cut.
        threads: intra-op threads.
        slowdown: how many times slower than this machine the device is to be; 1 changes nothing.

    Attributes:
        cuts: as given.
        whole: as given.
        segments: how many segments the model has.
        outputs: names of the model's outputs, in order.

    Raises:
        BundleCorrupt: a fragment does not have the digest it is named by.
        BundleError: ONNX Runtime refuses a segment.
    """

    def __init__(
        self,
        bundle: Bundle,
        cuts: Collection[int],
        *,
        whole: bool,
        threads: int = 1,
        slowdown: float = 1.0,
    ) -> None:
        self.cuts = frozenset(cuts)
        self.whole = whole
        self.segments = len(bundle.config.segments)
        self.outputs = tuple(spec.name for spec in bundle.config.outputs)
        self._slowdown, self._threads, self._began = slowdown, threads, 0.0
        self._runtime = SegmentRuntime(
            bundle,
            cuts,
            last=None if whole else max(cuts),
            threads=threads,
            pace=self._pace if slowdown > 1 else None,
        )
        self._codecs = CodecSet(bundle.config)
        self._device = threading.Lock()
        self._callers: deque[None] = deque()
        uncut = self._runtime.whole
        self._ways = (self._runtime.units, *([(uncut,)] if uncut is not None else []))
        self._expected = {unit: Smoothed() for way in self._ways for unit in way}
        self._warm_up()

    def run(
        self, env: Mapping[str, Array], start: int, stop: int, rows: int
    ) -> tuple[dict[str, Array], float]:
        """Run segments start…stop-1, as `SegmentRuntime.run` does.

        Args:
            env: the tensors they read from outside.
            start: first segment, on a boundary that `cuts` keeps.
            stop: one past the last segment, on such a boundary.
            rows: batch size.

        Returns:
            The tensors still read later, and seconds spent computing (waiting not counted).

        Raises:
            InvalidTensor: ONNX Runtime refuses the tensors.
        """
        if start == stop:
            return dict(env), 0.0
        return self._through(self._runtime.between(start, stop), env, rows)

    def prepare(self, codec: str, names: tuple[str, ...]) -> None:
        """Encode zeros once, so that no request waits for a codec's first use, or fails in it.

        Raises:
            UnknownRung: the bundle has no such codec for one of the tensors.
            MissingTool: the codec needs a library that is not installed.
        """
        self._codecs.pack(codec, _zeros(self._runtime.config.spec(name) for name in names), names)

    def encode(
        self, codec: str, env: Mapping[str, Array], names: tuple[str, ...]
    ) -> tuple[list[WireTensor], float]:
        """Encode crossing tensors; returns them and the seconds it took.

        Raises:
            UnknownRung: the bundle has no such codec for one of the tensors.
        """
        with self._turn():
            begin = time.perf_counter()
            packed = self._codecs.pack(codec, env, names)
            if self._slowdown > 1:
                self._pace(time.perf_counter() - begin)
            return packed, time.perf_counter() - begin

    def remaining(self, cut: int, rows: int) -> tuple[float, float]:
        """Seconds that segments `cut` to the last are expected to take, and a safe margin.

        Callers that wait for the device are counted as if each had as much to do.
        """
        ahead = [self._expected[unit] for unit in self._runtime.between(cut, self.segments)]
        mean = sum(e.mean for e in ahead) * rows * (1 + len(self._callers))
        return mean, 4 * sum(e.spread for e in ahead) * rows

    def head(self, cut: int) -> float:
        """Seconds that the segments before `cut` take for one row; 0 where not measured yet."""
        return sum(self._expected[unit].mean for unit in self._runtime.between(0, cut))

    def _through(
        self, units: Iterable[Unit], env: Mapping[str, Array], rows: int
    ) -> tuple[dict[str, Array], float]:
        """Run units one after the other, and learn what they take."""
        live, total = dict(env), 0.0
        with self._turn():
            for unit in units:
                live, seconds = self._runtime.run(live, unit.first, unit.last)
                self._expected[unit].add(seconds / rows)
                total += seconds
        return live, total

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Hold the device; those who wait or hold are counted."""
        self._callers.append(None)  # a deque, because its append and pop are atomic
        try:
            with self._device:
                self._began = time.thread_time()
                yield
        finally:
            self._callers.pop()

    def _pace(self, seconds: float) -> None:
        own = min(seconds, time.thread_time() - self._began) if self._threads == 1 else seconds
        time.sleep((self._slowdown - 1) * own)
        self._began = time.thread_time()

    def _warm_up(self) -> None:
        """Run on zeros: the first run allocates, and a deadline needs a first estimate."""
        if not self._runtime.units:
            return  # everything runs in the cloud
        env = _zeros(self._runtime.config.inputs)
        for _ in range(2):  # the first is slower than any later one
            for expected in self._expected.values():
                expected.seen = False
            try:
                for units in self._ways:
                    self._through(units, env, 1)
            except InvalidTensor:
                return  # a model may refuse zeros; its first request is the first estimate


def _zeros(specs: Iterable[TensorSpec]) -> dict[str, Array]:
    """One row of zeros for each declaration."""
    return {
        spec.name: np.zeros([1 if isinstance(dim, str) else dim for dim in spec.shape], spec.dtype)
        for spec in specs
    }
