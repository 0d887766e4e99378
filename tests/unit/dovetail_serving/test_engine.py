"""The tail's queue and batches, on real segments."""

import asyncio
import threading
from collections.abc import Coroutine, Mapping
from pathlib import Path

import numpy as np
import pytest
from tests.tiny_bundle import TinyBundle, rows, write_tiny_bundle

from dovetail.errors import DovetailError, InvalidTensor, Overloaded
from dovetail.runtime import SegmentRuntime
from dovetail.tensor import Array
from dovetail_serving.engine import Done, Engine, Job


class WatchedRuntime(SegmentRuntime):
    """Real segments that note the rows of each pass, and wait for a go before the first."""

    def __init__(self, tiny: TinyBundle) -> None:
        super().__init__(tiny.bundle, (0, 1, 2, 3), optimize=False)
        self.passes: list[int] = []
        self.threads: list[int] = []
        self.go = threading.Event()

    def run(self, env: Mapping[str, Array], start: int, stop: int, **more: object):
        self.go.wait(30)
        self.passes.append(len(next(iter(env.values()))))
        self.threads.append(threading.get_ident())
        return super().run(env, start, stop, **more)


class Bench:
    """An engine over watched segments, with jobs whose answers are their `scores`."""

    def __init__(self, tiny: TinyBundle, **options: int) -> None:
        self.runtime = WatchedRuntime(tiny)
        limits = {"concurrency": 1, "max_batch": 8, "max_queue": 16} | options
        self.engine = Engine(self.runtime, **limits)
        self.answers: dict[int, Array] = {}

    def job(self, number: int, count: int = 1) -> Job:
        feed = rows(count, seed=number)

        def encode(outputs: Mapping[str, Array]) -> tuple[bytes, dict[str, str]]:
            self.answers[number] = outputs["scores"].copy()
            return b"", {}

        return Job(0, ("x", 16), count, lambda: feed, encode)

    def run(self, *jobs: Job) -> list[Done | BaseException]:
        """Submit all jobs at once; the first pass starts when all are in."""

        async def main() -> list[Done | BaseException]:
            tasks = [asyncio.create_task(self.engine.compute(job)) for job in jobs]
            await asyncio.sleep(0)
            self.runtime.go.set()
            return await asyncio.gather(*tasks, return_exceptions=True)

        return self.drive(main())

    @staticmethod
    def drive(coroutine: Coroutine[object, object, object]) -> object:
        return asyncio.run(asyncio.wait_for(coroutine, 60))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


def test_requests_that_wait_together_are_computed_together_and_answered_apart(tiny: TinyBundle):
    """The first pass has whoever came first; the others waited, so they share the next."""
    bench = Bench(tiny)
    counts = [1, 2, 1, 3]

    done = bench.run(*(bench.job(n, count) for n, count in enumerate(counts)))

    assert all(isinstance(one, Done) for one in done)
    assert bench.runtime.passes == [1, 6]
    for number, count in enumerate(counts):
        want = tiny.whole(rows(count, seed=number))["scores"]
        np.testing.assert_allclose(bench.answers[number], want, rtol=0, atol=1e-5)


def test_a_pass_has_no_more_rows_than_max_batch_unless_one_request_does(tiny: TinyBundle):
    """A large request is served whole, but nothing is put on top of it."""
    bench = Bench(tiny, max_batch=4)

    bench.run(*(bench.job(n, count) for n, count in enumerate([1, 3, 2, 9, 1])))

    assert bench.runtime.passes[0] == 1
    assert sum(bench.runtime.passes) == 16
    assert all(count <= 4 for count in bench.runtime.passes if count != 9)


def test_rows_that_influence_each_other_are_never_computed_together(tmp_path: Path):
    """Dynamic quantisation scales over the batch: each answer must be the one it has alone."""
    dynamic = write_tiny_bundle(tmp_path / "dynamic", dynamic=True)
    bench = Bench(dynamic)

    bench.run(*(bench.job(n) for n in range(4)))

    assert bench.runtime.passes == [1, 1, 1, 1]
    for number in range(4):
        np.testing.assert_array_equal(
            bench.answers[number], dynamic.whole(rows(1, seed=number))["scores"]
        )


def test_a_model_with_a_fixed_batch_is_served_one_by_one(tmp_path: Path):
    """Two requests joined would have a shape the model does not declare."""
    bench = Bench(write_tiny_bundle(tmp_path / "fixed", batch=None))

    done = bench.run(*(bench.job(n) for n in range(3)))

    assert all(isinstance(one, Done) for one in done)
    assert bench.runtime.passes == [1, 1, 1]


def test_a_damaged_request_fails_alone(tiny: TinyBundle):
    """Its neighbours in the batch are answered."""
    bench = Bench(tiny)
    bad = bench.job(9)

    def refuse() -> Mapping[str, Array]:
        raise InvalidTensor("damaged")

    bad.decode = refuse
    done = bench.run(bench.job(0), bench.job(1), bad, bench.job(2))

    assert isinstance(done[2], InvalidTensor)
    assert [isinstance(one, Done) for one in done] == [True, True, False, True]


def test_a_request_the_segments_refuse_fails_alone(tiny: TinyBundle):
    """What decodes may still not run; the batch is then repeated one by one."""
    bench = Bench(tiny)
    bad = bench.job(9)
    bad.decode = lambda: {"x": rows(1, seed=9)["x"].astype(np.float64)}

    done = bench.run(bench.job(0), bench.job(1), bad)

    assert [isinstance(one, Done) for one in done] == [True, True, False]
    assert isinstance(done[2], DovetailError)
    want = tiny.whole(rows(1, seed=1))["scores"]
    np.testing.assert_allclose(bench.answers[1], want, rtol=0, atol=1e-5)


def test_a_quick_request_that_is_alone_is_computed_without_a_hop(tiny: TinyBundle):
    """Where its kind is known to be quick; the first one, of which nothing is known, is not."""
    bench = Bench(tiny)
    bench.runtime.go.set()

    async def alone() -> None:
        for number in range(100):  # the first ones, met cold, may not count as quick
            with bench.engine.visit():
                await bench.engine.compute(bench.job(number))

    bench.drive(alone())

    here = threading.get_ident()
    assert bench.runtime.threads[0] != here
    assert bench.runtime.threads[-1] == here
    np.testing.assert_allclose(
        bench.answers[99], tiny.whole(rows(1, seed=99))["scores"], rtol=0, atol=1e-5
    )


def test_requests_that_meet_are_computed_in_a_thread_so_that_they_gather(tiny: TinyBundle):
    """While one is still arriving, a quick one does not hold up the loop it arrives on."""
    bench = Bench(tiny)
    bench.runtime.go.set()

    async def main() -> None:
        for number in range(100):
            with bench.engine.visit():
                await bench.engine.compute(bench.job(number))
        with bench.engine.visit(), bench.engine.visit():
            await bench.engine.compute(bench.job(100))
        with bench.engine.visit():
            await bench.engine.compute(bench.job(101))  # alone again, but only just

    bench.drive(main())

    here = threading.get_ident()
    assert bench.runtime.threads[99] == here
    assert here not in bench.runtime.threads[100:]


def test_a_full_queue_refuses_the_next_request_and_serves_the_others(tiny: TinyBundle):
    """Waiting is bounded: one runs, two wait, the fourth is told to come back."""
    bench = Bench(tiny, max_queue=2)

    done = bench.run(*(bench.job(n) for n in range(4)))

    assert isinstance(done[3], Overloaded)
    assert [isinstance(one, Done) for one in done[:3]] == [True, True, True]


def test_a_request_whose_caller_went_away_is_not_computed(tiny: TinyBundle):
    """Its handler is cancelled when the connection is cut or its time runs out."""
    bench = Bench(tiny)

    async def main() -> None:
        first = asyncio.create_task(bench.engine.compute(bench.job(0)))
        gone = asyncio.create_task(bench.engine.compute(bench.job(1, 5)))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.wait([gone])
        bench.runtime.go.set()
        await first

    bench.drive(main())

    assert bench.runtime.passes == [1]
    assert bench.engine.waiting == 0
