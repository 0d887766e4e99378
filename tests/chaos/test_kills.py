"""Kill -9, under load, of everything that can be killed: never a wrong answer, back by itself."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
from tests.callers import Callers
from tests.edge_process import until
from tests.integration.conftest import Served
from tests.tiny_bundle import TinyBundle, rows, write_tiny_bundle

from dovetail.pool import TailApp
from dovetail_cli.ray_guard import marked
from dovetail_cli.ray_pool import RayPool
from dovetail_edge import Session

pytestmark = [pytest.mark.ray, pytest.mark.timeout(420)]

NAME = "chaos/tiny"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle", seed=5)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, tiny: TinyBundle) -> Iterator[Served]:
    """A pool of this module's own: it will not survive unharmed."""
    with RayPool(tmp_path_factory.mktemp("pool"), cpus=2) as pool:
        found = Served(pool)
        plans = {"camera": tiny.plan("cut1", deployment=NAME)}
        options = {"num_cpus": 0.1}
        path, digest = str(tiny.bundle.path), tiny.bundle.digest
        found.serve(TailApp(NAME, path, digest, plans, actor_options=options))
        yield found


class Load(Callers):
    """Threads that ask the session without a pause, each checking every answer."""

    def __init__(self, session: Session, tiny: TinyBundle) -> None:
        self.seen: Counter[tuple[str, bool]] = Counter()
        self.wrong: list[object] = []
        self._session = session
        feeds = [rows(1, seed=seed) for seed in range(3)]
        super().__init__(partial(self._ask, feed, tiny.whole(feed)["scores"]) for feed in feeds)

    def _ask(self, feed: dict[str, np.ndarray], want: np.ndarray, end: threading.Event) -> None:
        while not end.is_set():
            try:
                answer = self._session.infer_detailed(feed)
            except Exception as error:  # noqa: BLE001  an error is a finding here, whatever it is
                self.wrong.append(error)
                continue
            if not np.allclose(answer.outputs["scores"], want, rtol=1e-3, atol=1e-4):
                self.wrong.append(answer)
            self.seen[answer.rung, answer.degraded] += 1
            time.sleep(0.002)

    def until_seen(self, rung: str, *, degraded: bool, seconds: float) -> None:
        """Wait until 20 more answers of that kind were seen."""
        want = self.seen[rung, degraded] + 20
        until(lambda: self.seen[rung, degraded] >= want, seconds)


def edge(served: Served, tiny: TinyBundle) -> Session:
    plan = tiny.plan("cut1", deployment=NAME, generation=10, pinned=True, deadline=2.0)
    return Session(tiny.bundle, plan, endpoint=f"http://{served.address}")


def test_a_replica_killed_under_load_costs_no_answer(served: Served, tiny: TinyBundle) -> None:
    """The tail or, where that takes too long, the edge answers; then a new replica does."""
    application = tiny.plan(deployment=NAME).application
    with edge(served, tiny) as session, Load(session, tiny) as load:
        load.until_seen("cut1", degraded=False, seconds=60)
        killed = set(served.replica_pids(application))
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        until(lambda: bool(set(served.replica_pids(application)) - killed), 120)
        load.until_seen("cut1", degraded=False, seconds=120)
    assert killed
    assert not load.wrong


def test_all_of_ray_killed_under_load_costs_no_answer(served: Served, tiny: TinyBundle) -> None:
    """The whole cloud dies; the edge carries on alone until it is back on the same address."""
    with edge(served, tiny) as session, Load(session, tiny) as load:
        load.until_seen("cut1", degraded=False, seconds=120)
        for process in list(marked(served.pool._mark)):
            process.kill()
        load.until_seen("edge", degraded=True, seconds=60)
        until(served.pool.ensure, 60)
        load.until_seen("cut1", degraded=False, seconds=120)
    assert not load.wrong
