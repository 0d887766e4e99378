"""A cluster with nothing in it: what it leaves on the machine, also when its owner is killed.

These run before the other tests, because a checkout has one cluster at a time.
"""

import os
import signal
import subprocess
import sys

import pytest
from tests.cluster import images, machine
from tests.cluster.harness import CACHE, ROOT
from tests.cluster.prerequisites import check

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(1800),  # the first has images saved
    pytest.mark.usefixtures("hands"),
]

RUN = CACHE / "run"


def cluster(command):
    done = subprocess.run(
        [sys.executable, "-m", "tests.cluster", command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def before():
    """The machine before a cluster that ends with the test; what builds images has run."""
    cluster("down")  # what a run that was killed has left goes before the state is read
    images.archives(check())
    yield machine.state()
    cluster("down")


def test_after_down_the_machine_is_as_it_was(before):
    """Verify that rules, links, routes, settings, mounts and processes are those of before."""
    code, said = cluster("up")
    assert code == 0, said
    assert "export KUBECONFIG=" in said
    assert machine.left(before, RUN, seconds=0)

    assert cluster("down") == (0, "")
    assert machine.left(before, RUN) == {}
    assert cluster("status") == (1, "down\n")


def test_a_cluster_whose_owner_is_killed_goes_with_it(before):
    """Verify that nobody has to clean up: the kernel ends its processes, a guard the rest."""
    code, said = cluster("up")
    assert code == 0, said
    os.kill(int((CACHE / "owner").read_text()), signal.SIGKILL)

    assert machine.left(before, RUN) == {}
