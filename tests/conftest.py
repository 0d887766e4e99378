"""What every test of the suite runs under."""

from pathlib import PurePosixPath

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

# A busy machine must not fail a test: no example has a deadline.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


class Rooms(LoadScopeScheduling):  # type: ignore[misc]  # untyped library
    """Shares the suite among processes: a folder that shares what takes seconds to start, an API
    server or a Ray pool, goes to one of them; other tests stay with their file.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = PurePosixPath(nodeid.partition("::")[0])
        shares = file.parent.name in ("kube", "integration", "chaos")
        return str(file.parent if shares else file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Rooms:
    """Asked for where tests run in several processes."""
    return Rooms(config, log)
