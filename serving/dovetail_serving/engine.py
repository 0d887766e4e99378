"""Runs the segments behind a cut for many requests at once, in as few passes as are waiting.

Batches form only from requests that already wait: whenever a compute thread falls free it takes
the first one waiting and every other that fits beside it. An idle tail therefore adds no delay,
where a batching timer would charge each lone request its full length, and a busy one batches by
itself. Requests fit together when they enter at the same cut with the same dtypes and the same
shapes beyond the batch axis. A range of segments whose rows influence each other (dynamic
quantisation takes its scale over the whole batch) is never batched: a neighbour must not change
an answer.

All work of a request that is not waiting, from decoding to the bytes of the answer, happens in
one visit to one compute thread: each hop between threads costs more than decoding a small tensor.
For a computation of a millisecond the hops themselves are a tenth of the round trip, so a request
that is alone here is computed where it is, on the event loop, if its kind was always that quick.
The loop is held up that long and nobody is there to notice; as soon as two requests meet, and for
a second after, all of them go to the threads, for what holds up the loop cannot gather a batch.
Only decoded requests are joined, one by one, so a damaged one fails alone.

Waiting is bounded in number. A request whose caller stops waiting is taken out: cancelling
`Engine.compute` before its turn means it is not computed.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf

import numpy as np

from dovetail import telemetry
from dovetail.bundle import BundleConfig
from dovetail.errors import DovetailError, Overloaded
from dovetail.runtime import SegmentRuntime
from dovetail.tensor import Array

Key = tuple[object, ...]
Answer = tuple[bytes, dict[str, str]]

_QUICK = 0.002  # seconds the event loop may be held up
_FADE = 0.9  # what a request leaves of the longest seen before it
_APART = 1.0  # seconds without two requests at a time before one counts as alone


@dataclass(slots=True, eq=False)
class Job:
    """One request, admitted and waiting.

    Attributes:
        cut: segments before it ran elsewhere.
        key: what a request must share to be computed together with this one.
        rows: size of its batch.
        decode: gives the tensors that cross at `cut`; called in a compute thread.
        encode: makes the answer from the outputs; called in a compute thread.
    """

    cut: int
    key: Key
    rows: int
    decode: Callable[[], Mapping[str, Array]]
    encode: Callable[[Mapping[str, Array]], Answer]
    arrived: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True, slots=True)
class Done:
    """A computed request: its answer and the seconds of each stage."""

    answer: Answer
    queue: float
    decode: float
    compute: float
    encode: float


Entry = tuple[Job, asyncio.Future[Done]]
Result = Done | Exception


class Engine:
    """The segments of one bundle and the queue in front of them.

    Args:
        runtime: all segments, loaded for every cut.
        concurrency: computations at the same time.
        max_batch: most rows computed together.
        max_queue: most requests waiting.
    """

    def __init__(
        self, runtime: SegmentRuntime, *, concurrency: int, max_batch: int, max_queue: int
    ) -> None:
        self._runtime, self._stop = runtime, len(runtime.config.segments)
        self._max_batch, self._max_queue = max_batch, max_queue
        self._joinable = {cut for cut in range(self._stop) if joinable(runtime.config, cut)}
        self._free = concurrency
        self._waiting: deque[Entry] = deque()
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="compute")
        self._longest: dict[int, float] = {}  # processor seconds a row behind a cut took, fading
        self._visitors, self._met = 0, -inf

    @property
    def waiting(self) -> int:
        """Requests that wait for a compute thread."""
        return len(self._waiting)

    @contextmanager
    def visit(self) -> Iterator[None]:
        """Around a request from its first byte on: says whether requests meet here."""
        self._visitors += 1
        if self._visitors > 1:
            self._met = time.perf_counter()
        try:
            yield
        finally:
            self._visitors -= 1

    async def compute(self, job: Job) -> Done:
        """Compute one request; call from the event loop. Cancelled while waiting, it never runs.

        Raises:
            Overloaded: too many requests wait already.
            DovetailError: it cannot be decoded or computed.
        """
        if self._quick(job):
            return _done(self._work([job])[0])
        if len(self._waiting) >= self._max_queue:
            raise Overloaded(f"{self._max_queue} requests wait already; try again in a second")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Done] = loop.create_future()
        entry = (job, future)
        self._waiting.append(entry)
        telemetry.queue_length.add(1)
        self._start()
        try:
            return await future
        finally:
            if entry in self._waiting:  # its time ran out, or its caller went away
                self._waiting.remove(entry)
                telemetry.queue_length.add(-1)

    def close(self) -> None:
        """Let running computations end and take no more."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _start(self) -> None:
        """Give waiting requests to the free compute threads."""
        loop = asyncio.get_running_loop()
        while self._free and (batch := self._take()):
            self._free -= 1
            telemetry.queue_length.add(-len(batch))
            self._threads.submit(self._compute, batch, loop)

    def _take(self) -> list[Entry]:
        """The first waiting request and those that fit beside it, in order of arrival."""
        alive = [entry for entry in self._waiting if not entry[1].done()]
        if not alive:
            return []
        (first, _), rows = alive[0], 0
        batch: list[Entry] = []
        alone = first.cut not in self._joinable
        for entry in alive:
            job = entry[0]
            full = batch and (alone or rows + job.rows > self._max_batch)
            if job.key == first.key and not full:
                batch.append(entry)
                rows += job.rows
        for entry in batch:
            self._waiting.remove(entry)
        return batch

    def _quick(self, job: Job) -> bool:
        """Whether it is alone and the loop may be held up for as long as it takes."""
        alone = self._visitors <= 1 and time.perf_counter() - self._met > _APART
        return alone and not self._waiting and self._longest.get(job.cut, inf) * job.rows < _QUICK

    def _compute(self, batch: Sequence[Entry], loop: asyncio.AbstractEventLoop) -> None:
        """Compute a batch in a compute thread and hand the results to the loop, in one hop."""
        try:
            results: Sequence[Result] = self._work([job for job, _ in batch])
        except Exception as error:  # noqa: BLE001  a defect must not leave requests waiting
            results = [error] * len(batch)
        loop.call_soon_threadsafe(self._finish, batch, results)

    def _finish(self, batch: Sequence[Entry], results: Sequence[Result]) -> None:
        self._free += 1
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():
                continue
            if isinstance(result, Done):
                future.set_result(result)
            else:
                future.set_exception(result)
        self._start()

    def _work(self, jobs: Sequence[Job]) -> list[Done | DovetailError]:
        """Decode, compute and encode a batch."""
        started, own = time.perf_counter(), time.thread_time()
        envs = [_decode(job) for job in jobs]
        good = [env for env in envs if not isinstance(env, DovetailError)]
        if not good:
            return [env for env in envs if isinstance(env, DovetailError)]
        joined = _join(good)
        decoded = time.perf_counter()
        try:
            outputs, _ = self._runtime.run(joined, jobs[0].cut, self._stop)
        except DovetailError as error:
            if len(jobs) == 1:
                return [error]
            return [self._work([job])[0] for job in jobs]  # so only the one at fault fails
        computed, first = time.perf_counter(), 0
        results: list[Done | DovetailError] = []
        for job, env in zip(jobs, envs, strict=True):
            if isinstance(env, DovetailError):
                results.append(env)
                continue
            begin = time.perf_counter()
            answer = job.encode(_rows(outputs, first, job.rows) if len(good) > 1 else outputs)
            done = time.perf_counter()
            times = (started - job.arrived, decoded - started, computed - decoded, done - begin)
            results.append(Done(answer, *times))
            first += job.rows
        telemetry.batch_size.record(first)
        cut, took = jobs[0].cut, (time.thread_time() - own) / first
        self._longest[cut] = max(took, _FADE * self._longest.get(cut, 0.0))
        return results


def joinable(config: BundleConfig, cut: int) -> bool:
    """Whether requests that enter at `cut` may be computed together.

    They may where every row's answer is its own and everything that crosses or is answered has
    the batch as axis 0.
    """
    specs = [config.spec(name) for name in config.crossing(cut)]
    specs += config.remote_outputs(cut)
    return (
        config.batch is not None
        and all(segment.row_wise for segment in config.segments[cut:])
        and all(spec.shape[:1] == (config.batch,) for spec in specs)
    )


def _join(envs: Sequence[Mapping[str, Array]]) -> Mapping[str, Array]:
    if len(envs) == 1:
        return envs[0]
    return {name: np.concatenate([env[name] for env in envs]) for name in envs[0]}


def _decode(job: Job) -> Mapping[str, Array] | DovetailError:
    try:
        return job.decode()
    except DovetailError as error:
        return error


def _done(result: Result) -> Done:
    if isinstance(result, Done):
        return result
    raise result


def _rows(outputs: Mapping[str, Array], first: int, count: int) -> Mapping[str, Array]:
    return {name: array[first : first + count] for name, array in outputs.items()}
