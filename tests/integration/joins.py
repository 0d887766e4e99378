"""A deployment whose devices begin with an address and a token, and what such a device has."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.callers import Callers
from tests.edge_process import EDGE, JOIN, EdgeProcess, infer, is_right, until
from tests.tiny_bundle import TinyBundle, rows, write_tiny_bundle

from dovetail.layout import blob_dir
from dovetail.plan import Plan
from dovetail.pool import TailApp
from dovetail_serving.intake import token_digest

if TYPE_CHECKING:
    from tests.integration.conftest import Served

NAME = "joins/tiny"
_ROUTE = "joins--tiny--"
TOKEN = "a token of the group"


class Group:
    """A deployment with two versions, each served, and one plan for all its devices."""

    def __init__(self, served: "Served", folder: Path) -> None:
        self.served = served
        # A tail that others left open would know a stranger's token too: it asks for none.
        served.tails.clear()
        self.first = write_tiny_bundle(folder / "first", seed=11, width=64)
        self.second = write_tiny_bundle(folder / "second", seed=12, width=384)
        self.endpoint = f"http://{served.address}"
        self.generation, self.token = 0, TOKEN
        self.plan = self.publish(self.first)

    def publish(self, made: TinyBundle, default: str = "cut1", **more: object) -> Plan:
        """Tell devices to use a version; returns when its tail says so."""
        self.generation += 1
        more = {"pinned": True, "deadline": 20.0, **more}
        self.plan = made.plan(default, generation=self.generation, deployment=NAME, **more)
        self.serve()
        return self.plan

    def set_back(self, made: TinyBundle) -> Plan:
        """Let the pool begin anew with one version, as a restored cluster does."""
        for name in [name for name in self.served.tails if name.startswith(_ROUTE)]:
            del self.served.tails[name]
        self.served.serve()
        self.plan = made.plan("cut1", deployment=NAME, deadline=20.0)
        self.serve(self.first)
        return self.plan

    def serve(self, *versions: TinyBundle) -> None:
        """Let the pool run what was decided: both versions where none is named."""
        for made in versions or (self.first, self.second):
            app = TailApp(
                NAME,
                str(made.bundle.path),
                made.bundle.digest,
                {"camera": self.plan},
                tokens={"camera": token_digest(self.token)},
                actor_options={"num_cpus": 0.1},
            )
            self.served.tails[app.application] = app
        self.served.serve()
        until(lambda: self._told() == self.plan.generation)

    @contextmanager
    def revoked(self, token: str) -> Iterator[None]:
        """Give the group another token, and its first one back at the end."""
        try:
            self.token = token
            self.serve()
            yield
        finally:
            self.token = TOKEN
            self.serve()

    def _told(self) -> object:
        headers = {"Authorization": f"Bearer {self.token}"}
        path = f"/{self.plan.application}/dovetail/plan"
        return self.served.call("GET", path, headers=headers).json().get("generation")

    def only(self, made: TinyBundle, deepest: int) -> dict[str, object]:
        """A plan that keeps a device from ever running more than the first segments."""
        ladder = tuple(rung for rung in made.plan().ladder if rung.cut <= deepest)
        return {"ladder": ladder, "fallback": "Fail"}


class Device:
    """A device's disk: a token, and a state folder."""

    def __init__(self, folder: Path, token: str = TOKEN) -> None:
        self.state, self.token_file = folder / "state", folder / "token"
        self.token_file.write_text(token + "\n")

    def flags(self, endpoint: str) -> list[str]:
        """Runs an edge as a node's pod does."""
        return [*EDGE, f"--endpoint={endpoint}", *self._have()]

    def join(self, url: str, *more: str) -> list[str]:
        """Runs one as a person does."""
        return [*JOIN, url, *self._have(), *more]

    def _have(self) -> list[str]:
        return [f"--token-file={self.token_file}", f"--state={self.state}"]

    def folder(self, made: TinyBundle) -> Path:
        """Where it keeps a bundle."""
        return self.state / "bundles" / made.bundle.digest.removeprefix("sha256:")

    def blobs(self, made: TinyBundle) -> set[str]:
        """Digests of what it has of a bundle."""
        folder = blob_dir(self.folder(made))
        return {f"sha256:{path.name}" for path in folder.iterdir()} if folder.is_dir() else set()


def described(made: TinyBundle) -> set[str]:
    """Digests of a bundle's manifest and description."""
    manifest = json.loads((made.bundle.blob_dir / made.bundle.digest[7:]).read_bytes())
    return {made.bundle.digest, manifest["config"]["digest"]}


def follows(edge: EdgeProcess, plan: Plan) -> bool:
    return bool(edge.status()["generation"] == plan.generation)


class Load(Callers):
    """Requests without a pause from several callers, and what became of each.

    Attributes:
        answered: how many were right, by version.
        wrong: whatever else came.
    """

    def __init__(self, edge: EdgeProcess, *versions: TinyBundle) -> None:
        self._feed = rows(1)
        self._want = {made.bundle.version: made.whole(self._feed) for made in versions}
        self.answered = dict.fromkeys(self._want, 0)
        self.wrong: list[object] = []
        self._edge, self._lock = edge, threading.Lock()
        super().__init__([self._run] * 3)

    def _run(self, end: threading.Event) -> None:
        client = self._edge.triton()
        while not end.is_set():
            try:
                result = infer(client, self._feed)
            except Exception as error:  # noqa: BLE001  whatever it is, the request failed
                self.wrong.append(error)
                continue
            said = result.get_response()
            version = said["model_version"]
            right = is_right(result, self._want[version])
            with self._lock:
                self.answered[version] += right
                if not right or said["parameters"]["degraded"]:
                    self.wrong.append(said)
