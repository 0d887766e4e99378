"""Loads a bundle's segments and runs any range of them.

Segments, not head/tail pairs, are what both sides keep loaded: every rung is then resident at
about the model's own memory, and a move loads nothing. Cutting costs some time (a boundary hides
fusions from ONNX Runtime), so neighbours that no allowed rung separates are joined into one
session, and the whole of a small network is loaded beside its segments, for requests that are not
cut at all (ADR 0012). Joining needs no onnx package: a protobuf message that is repeated is merged
with itself, so a model is its header, the node fragments and weight fragments of the range, and the
range's inputs and outputs, one behind the other.

Weights are external data in the bundle's blob folder, which ONNX Runtime maps; two sessions that
use one weight map the same pages. Activations come from one arena that all sessions share. With one
each, a segment writes into memory that the segment before it has not just used and that is in no
cache: half of what cutting cost, up to 5 % of a small network's time at a single wide cut.
"""

import itertools
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import onnxruntime as ort

from dovetail.bundle import Bundle, BundleConfig
from dovetail.errors import BundleError, InvalidTensor, ModelLimitExceeded
from dovetail.tensor import ONNX_TYPE, Array, TensorSpec

_MODEL_GRAPH = 7
_GRAPH_NAME, _GRAPH_INPUT, _GRAPH_OUTPUT = 2, 11, 12
_FOLDER_OPTION = "session.model_external_initializers_file_folder_path"
# ONNX Runtime names a failed allocation only in its text.
_OUT_OF_MEMORY = ("Failed to allocate memory", "bad_alloc", "bad allocation")

Clock = Callable[[], float]


@dataclass(frozen=True, eq=False)
class Unit:
    """Neighbouring segments loaded as one session: segments first…last-1."""

    first: int
    last: int
    session: ort.InferenceSession
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def unit_tensors(config: BundleConfig, first: int, last: int) -> tuple[list[str], list[str]]:
    """Names that segments first…last-1, joined, read from outside and hand on."""
    inside = config.segments[first:last]
    written = [name for segment in inside for name in segment.writes]
    made = set(written)
    reads = sorted({name for segment in inside for name in segment.reads} - made)
    later = {name for segment in config.segments[last:] for name in segment.reads}
    later.update(spec.name for spec in config.outputs)
    return reads, [name for name in written if name in later]


def assemble(bundle: Bundle, first: int, last: int, *, sized: bool = True) -> bytes:
    """Build the ONNX model of segments first…last-1 from the bundle's fragments.

    Args:
        bundle: the bundle.
        first: first segment.
        last: one past the last segment.
        sized: declare the sizes of inputs and outputs, which lets ONNX Runtime optimise more.

    The result is a serialised ModelProto whose external data locations are file names in
    `bundle.blob_dir`.

    Raises:
        BundleCorrupt: a fragment does not have the digest it is named by.
    """
    config = bundle.config
    reads, writes = unit_tensors(config, first, last)
    parts = [_field(_GRAPH_NAME, f"segments_{first}_{last}".encode())]
    parts += [bundle.read(segment.nodes) for segment in config.segments[first:last]]
    parts += [
        bundle.read(group.initializers)
        for group in config.groups
        if any(first <= index < last for index in group.segments)
    ]
    parts += [_field(_GRAPH_INPUT, _value_info(config.spec(name), sized)) for name in reads]
    parts += [_field(_GRAPH_OUTPUT, _value_info(config.spec(name), sized)) for name in writes]
    return bundle.read(config.header) + b"".join(_field(_MODEL_GRAPH, part) for part in parts)


def session_options(*, threads: int, optimize: bool) -> ort.SessionOptions:
    """Options every session of Dovetail runs with.

    Args:
        threads: intra-op threads. Waiting threads do not spin: a head and a tail, or a tail and
            its neighbours, often share cores.
        optimize: off gives results that are equal bit for bit whatever the cut.
    """
    _share_arena()
    options = ort.SessionOptions()
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    return options


@cache
def _share_arena() -> None:
    """Give this process one arena for the activations of all sessions that ask for it."""
    cpu = ort.OrtMemoryInfo(
        "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
    )
    # Growth by doubling (0), not by what is asked for (1): only a region larger than one segment
    # needs is split, and so used again by the next segment, which is the point of sharing.
    ort.create_and_register_allocator(cpu, ort.OrtArenaCfg({"arena_extend_strategy": 0}))


class SegmentRuntime:
    """Segments first…last-1 of a bundle, loaded and ready for every cut in `cuts`.

    Args:
        bundle: the bundle.
        cuts: cuts that must stay possible; neighbours that none separates are joined.
        first: first segment to load.
        last: one past the last segment to load; None for all.
        threads: intra-op threads of each session.
        optimize: graph optimisation, on except where bits are compared.
        whole: whether the uncut network may be loaded beside its segments; not where it is the
            segments that are looked at.
        pace: called with the seconds a unit took, after it ran; a simulated slow device waits
            there. None where nothing is simulated.

    Attributes:
        config: the bundle's description.
        units: what is loaded, in order of execution.
        whole: the uncut network beside them; None where it is not loaded.

    Raises:
        BundleCorrupt: a blob does not have the digest it is named by.
        BundleError: ONNX Runtime refuses a segment.
    """

    def __init__(
        self,
        bundle: Bundle,
        cuts: Collection[int],
        *,
        first: int = 0,
        last: int | None = None,
        threads: int = 1,
        optimize: bool = True,
        whole: bool = True,
        pace: Callable[[float], None] | None = None,
    ) -> None:
        self.config = bundle.config
        stop = len(bundle.config.segments) if last is None else last
        bundle.ensure(bundle.needs(first, stop))
        edges = sorted({first, stop, *(cut for cut in cuts if first < cut < stop)})
        options = session_options(threads=threads, optimize=optimize)
        options.add_session_config_entry(_FOLDER_OPTION, str(bundle.blob_dir.resolve()))
        self.units = tuple(
            _load(bundle, options, begin, end) for begin, end in itertools.pairwise(edges)
        )
        everything = (first, stop) == (0, len(bundle.config.segments)) and len(self.units) > 1
        beside = whole and everything and bundle.config.keeps_whole
        self.whole = _load(bundle, options, first, stop) if beside else None
        self._pace = pace
        self._readers = _last_readers(self.config)

    def run(
        self, env: Mapping[str, Array], start: int, stop: int, *, clock: Clock = time.perf_counter
    ) -> tuple[dict[str, Array], float]:
        """Run segments start…stop-1.

        Args:
            env: the tensors those segments read from outside; the mapping is not changed.
            start: first segment; a boundary of a loaded unit.
            stop: one past the last segment; a boundary of a loaded unit.
            clock: monotonic seconds.

        Returns:
            The tensors that segments from `stop` on or the caller still read, those of `env`
            included, and the seconds spent in the segments (and in `pace`).

        Raises:
            InvalidTensor: ONNX Runtime refuses the tensors.
            ModelLimitExceeded: a segment ran out of memory.
        """
        live, begin = dict(env), clock()
        for unit in self._covering(start, stop):
            before = clock()
            results = _run(unit, live)
            live.update(zip(unit.outputs, results, strict=True))
            for name in [name for name in live if self._readers.get(name, 0) <= unit.last]:
                del live[name]
            if self._pace is not None:
                self._pace(clock() - before)
        return live, clock() - begin

    def between(self, start: int, stop: int) -> Sequence[Unit]:
        """What runs of segments start…stop-1, as far as it is loaded, in order of execution."""
        if self.whole is not None and (start, stop) == (self.whole.first, self.whole.last):
            return (self.whole,)
        return tuple(unit for unit in self.units if start <= unit.first and unit.last <= stop)

    def _covering(self, start: int, stop: int) -> Sequence[Unit]:
        units = self.between(start, stop)
        covered = sum(unit.last - unit.first for unit in units)
        if covered != stop - start:
            loaded = [(unit.first, unit.last) for unit in self.units]
            raise BundleError(
                f"segments {start} to {stop} are not loaded as whole units; loaded are {loaded}"
            )
        return units


def _load(bundle: Bundle, options: ort.SessionOptions, first: int, last: int) -> Unit:
    reads, writes = unit_tensors(bundle.config, first, last)
    try:
        session = _session(assemble(bundle, first, last), options, f"{first} to {last}")
    except BundleError:
        # A branch of an If may fit other sizes than those declared. It is never run, but with
        # them ONNX Runtime's type inference refuses the whole segment; without, it waits and sees.
        model = assemble(bundle, first, last, sized=False)
        session = _session(model, options, f"{first} to {last}")
    return Unit(first, last, session, tuple(reads), tuple(writes))


def _session(model: bytes, options: ort.SessionOptions, which: str) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no public base class
        raise BundleError(
            f"ONNX Runtime {ort.__version__} refuses segments {which}: {error}"
        ) from error


def _run(unit: Unit, env: Mapping[str, Array]) -> Sequence[Any]:
    try:
        feed = {name: env[name] for name in unit.inputs}
    except KeyError as error:
        raise InvalidTensor(
            f"segments {unit.first} to {unit.last} read {error.args[0]!r}, which was not given"
        ) from error
    try:
        return unit.session.run(unit.outputs, feed)  # type: ignore[no-any-return]  # untyped library
    except Exception as error:  # ONNX Runtime's errors share no public base class
        if isinstance(error, MemoryError) or any(sign in str(error) for sign in _OUT_OF_MEMORY):
            raise ModelLimitExceeded(
                f"segments {unit.first} to {unit.last} need more memory than there is for these "
                f"tensors; send fewer rows: {error}"
            ) from error
        raise InvalidTensor(
            f"segments {unit.first} to {unit.last} cannot run on these tensors: {error}"
        ) from error


def _last_readers(config: BundleConfig) -> dict[str, int]:
    """For each tensor, one past the last segment that reads it; outputs are never freed."""
    last = {
        name: index + 1 for index, segment in enumerate(config.segments) for name in segment.reads
    }
    return last | {spec.name: len(config.segments) + 1 for spec in config.outputs}


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, payload: bytes) -> bytes:
    """One length-delimited protobuf field."""
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _dim(dim: int | str) -> bytes:
    """What a dimension holds: dim_value = 1 or dim_param = 2."""
    return _field(2, dim.encode()) if isinstance(dim, str) else b"\x08" + _varint(dim)


def _value_info(spec: TensorSpec, sized: bool) -> bytes:
    """A ValueInfoProto: name = 1, type = 2 { tensor_type = 1 { elem_type = 1, shape = 2 } }."""
    dims = b"".join(_field(1, _dim(dim) if sized else b"") for dim in spec.shape)
    tensor = b"\x08" + _varint(ONNX_TYPE[spec.dtype]) + _field(2, dims)
    return _field(1, spec.name.encode()) + _field(2, _field(1, tensor))
