"""What `dovetail up` keeps between two runs, and the lock that lets only one run use it.

The folder holds bundles by what they were made from, the last plan of each device class (so that
generations go on rising: an edge ignores a lower one), tokens readable by their owner only, and
logs. Everything in it can be deleted while nothing runs.
"""

import fcntl
import json
import os
import secrets
from hashlib import sha256
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from dovetail.errors import StateInUse
from dovetail.plan import Plan


class State:
    """The state directory; use as a context manager, which holds its lock.

    Args:
        path: the folder; made if it is not there.

    Raises:
        StateInUse: another `dovetail up` holds it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Self:
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.path / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._lock, 32, 0).decode().strip() or "unknown"
            os.close(self._lock)
            raise StateInUse(
                f"{self.path} is in use by another `dovetail up` (process {holder}); stop it, or "
                "choose another folder with --state"
            ) from error
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._lock)

    def folder(self, *parts: str) -> Path:
        """A folder inside, made if it is not there."""
        path = self.path.joinpath(*parts)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def token(self, name: str) -> Path:
        """File with the bearer token of that name, made of 256 random bits the first time."""
        path = self.folder("tokens") / name
        if not path.is_file():
            write_private(path, secrets.token_hex(32))
        return path

    def plan_file(self, device_class: str) -> Path:
        """Where the class's plan is kept."""
        return self.folder("plans") / f"{device_class}.json"

    def keep(self, plan: Plan) -> None:
        """Remember a plan, in one step."""
        text = json.dumps(plan.model_dump(mode="json", by_alias=True), indent=1)
        write_private(self.plan_file(plan.device_class), text)

    def generation(self, device_class: str) -> int:
        """Generation of the class's last plan; 0 where there is none that can be read."""
        try:
            return Plan.model_validate_json(self.plan_file(device_class).read_text()).generation
        except (FileNotFoundError, ValidationError):
            return 0


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, in one step."""
    temp = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(temp, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    temp.replace(path)


def fingerprint(token: Path) -> str:
    """What a server keeps of a token: its sha256 in hex."""
    return sha256(token.read_bytes()).hexdigest()
