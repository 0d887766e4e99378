"""The slow hand on one machine: reads the ledger, steps, publishes.

All decisions are `dovetail.control.step`; here are only its effects. A plan is written to disk
before it is published, so that a generation is never used twice, then put into Serve's
`user_config`, which hands it to the running replicas without a restart.
"""

import http.client
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from dovetail.control import State as Hand
from dovetail.control import Terms, start, step
from dovetail.decide import Decision
from dovetail.errors import Unavailable
from dovetail.measure import Window
from dovetail.plan import Plan
from dovetail.pool import LEDGER_APPLICATION
from dovetail_cli.local.state import State

_TIMEOUT = 5.0
_MEMORY = 120  # the ledger remembers no longer


class SlowHand:
    """Moves every class of one deployment.

    Args:
        terms: what each class may do.
        state: where generations are remembered.
        window: seconds between two steps.
        publish: puts plans into the pool; raises `PoolFailed`.

    Attributes:
        hands: what is remembered, by class.
        decisions: the last decision, by class.
    """

    def __init__(
        self,
        terms: Mapping[str, Terms],
        state: State,
        window: float,
        publish: Callable[[Mapping[str, Plan]], None],
    ) -> None:
        self._terms, self._state, self._publish = terms, state, publish
        self._window, self._due, self._read = window, 0.0, math.inf
        self.hands: dict[str, Hand] = {
            name: start(own, state.generation(name) + 1) for name, own in terms.items()
        }
        self.decisions: dict[str, Decision] = {}

    @property
    def plans(self) -> dict[str, Plan]:
        """The plans in force."""
        return {name: hand.plan for name, hand in self.hands.items()}

    def keep(self) -> None:
        """Write the plans in force to disk."""
        for plan in self.plans.values():
            self._state.keep(plan)

    def turn(self, windows: Callable[[int], Mapping[str, Window]], now: float) -> None:
        """Step every class once a window.

        Args:
            windows: reads the last so many seconds by class; raises `Unavailable`.
            now: seconds since the epoch.
        """
        if now < self._due:
            return
        # Publishing takes a while: what was seen meanwhile must not fall between two windows.
        seen = windows(min(math.ceil(max(self._window, now - self._read)), _MEMORY))
        self._read, self._due = now, now + self._window
        before = self.plans
        for name, own in self._terms.items():
            window = seen.get(name, Window())
            self.hands[name], self.decisions[name] = step(own, self.hands[name], window, now)
        if self.plans != before:
            self.keep()
            self._publish(self.plans)


class LedgerClient:
    """Reads the ledger as the operator.

    Args:
        port: loopback port of the pool's ingress.
        token: the operator's bearer token.
        deployment: `<namespace>/<name>`.
    """

    def __init__(self, port: int, token: str, deployment: str) -> None:
        self._port, self._token, self._deployment = port, token, deployment

    def windows(self, seconds: int) -> dict[str, Window]:
        """What each class's devices saw in the last `seconds`.

        Raises:
            Unavailable: the ledger does not answer.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_TIMEOUT)
        path = f"/{LEDGER_APPLICATION}/v1/windows?seconds={seconds}"
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {self._token}"})
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != http.client.OK:
                raise Unavailable(f"the ledger answered {answer.status}")
            document: dict[str, Any] = json.loads(content)
            classes = document["windows"].get(self._deployment, {})
            return {name: Window.load(window) for name, window in classes.items()}
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            raise Unavailable(f"the ledger does not answer: {error}") from error
        finally:
            connection.close()
