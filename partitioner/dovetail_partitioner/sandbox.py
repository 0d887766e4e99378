"""Runs untrusted work in a child process with limits.

An ONNX file is a program. Parsing it, inferring its shapes and running it once can ask for
terabytes, never end, or hit a memory-safety bug in a native library; none of that may take the
process down that was asked to look at it. So such work runs in a fresh child with limits on memory,
processor time and wall-clock time and, where the kernel lets us, in a network namespace without
any interface. What comes back is unpickled with an allow-list: a child that was taken over cannot
make its parent run code.

The price is the start of a Python process and its imports, about a second a model. The child can
still read files the user can read: external data is checked to lie in the model's folder, and a
file that was read has no network to leave by.

References: setrlimit(2), unshare(2), Python `pickle`, "Restricting Globals".
"""

import ctypes
import io
import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final, TypeVar

from dovetail.errors import DovetailError, ModelError, ModelLimitExceeded, by_code

_T = TypeVar("_T")
_GIB: Final = 1 << 30
_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000
_PACKAGE: Final = "dovetail_partitioner."
# What a pickled numpy array or a dataclass names, beside our own classes.
_ALLOWED: Final = frozenset(
    {
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.numeric", "_frombuffer"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy.core.numeric", "_frombuffer"),
    }
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a child may use.

    Attributes:
        memory: bytes of address space.
        cpu: seconds of processor time, all threads together.
        wall: seconds from start to end.
    """

    memory: int = 8 * _GIB
    cpu: int = 600
    wall: float = 600.0

    @classmethod
    def for_model(cls, nbytes: int) -> "Limits":
        """Limits for a model of that many bytes, external data included.

        Loading maps or copies the weights up to three times (file, protobuf, ONNX Runtime); 6 GiB
        remain for the libraries' own address space and the activations of one run. Never more
        than the machine has.
        """
        has = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return cls(memory=min(6 * _GIB + 4 * nbytes, has))


def run(fn: Callable[..., _T], *args: object, limits: Limits) -> tuple[_T, bool]:
    """Call `fn(*args)` in a limited child process.

    Args:
        fn: a module-level function of this package.
        args: picklable arguments.
        limits: what the child may use.

    Returns:
        The function's result, and whether the child was cut off from the network.

    Raises:
        ModelLimitExceeded: the child ran into a limit.
        ModelError: the child crashed.
        DovetailError: the typed error `fn` raised.
    """
    with tempfile.TemporaryDirectory(prefix="dovetail-sandbox-") as folder:
        answer = Path(folder) / "answer"
        request = pickle.dumps((limits, fn.__module__, fn.__qualname__, args))
        command = [sys.executable, "-P", "-m", __name__, str(answer)]
        try:
            done = subprocess.run(
                command, input=request, capture_output=True, timeout=limits.wall, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise ModelLimitExceeded(
                f"the model was given {limits.wall:.0f} s to load, infer its shapes and run once, "
                "and did not finish"
            ) from error
        if done.returncode != 0 or not answer.is_file():
            raise _crash(done.returncode, done.stderr, limits)
        kind, value, offline = unpickle(answer.read_bytes())
    if kind == "error":
        raise by_code(value[0])(value[1])
    return value, offline


def unpickle(data: bytes) -> Any:
    """Load what a child answered.

    Raises:
        ModelError: it names code other than our own dataclasses and numpy arrays.
    """
    return _Unpickler(io.BytesIO(data)).load()


def _crash(code: int, stderr: bytes, limits: Limits) -> DovetailError:
    """Tell the limits apart from a crash by how the child ended."""
    text = stderr.decode(errors="replace").strip()
    if -code == signal.SIGXCPU:
        return ModelLimitExceeded(f"the model used more than {limits.cpu} s of processor time")
    if -code == signal.SIGKILL or "MemoryError" in text or "bad_alloc" in text:
        return ModelLimitExceeded(
            f"the model asked for more than the {limits.memory / _GIB:.1f} GiB of memory "
            "an untrusted model is given"
        )
    last = text.splitlines()[-1] if text else "no message"
    return ModelError(f"reading the model crashed its sandbox (exit {code}): {last}")


class _Unpickler(pickle.Unpickler):
    """Loads our own dataclasses and numpy arrays, nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        """Resolve a global if it is on the allow-list."""
        if (module, name) not in _ALLOWED and not module.startswith(_PACKAGE):
            raise ModelError(f"the sandbox answered with a {module}.{name}, which is not accepted")
        found = super().find_class(module, name)
        if module.startswith(_PACKAGE) and not isinstance(found, type):
            raise ModelError(f"the sandbox answered with {module}.{name}, which is no class")
        return found


def _leave_network() -> bool:
    """Enter a network namespace with no interface; false where the kernel does not permit it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "unshare"):
        return False
    return any(
        libc.unshare(flags) == 0 for flags in (_CLONE_NEWNET, _CLONE_NEWUSER | _CLONE_NEWNET)
    )


def _limit(limits: Limits) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu, limits.cpu + 1))
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory, limits.memory))


def _child(answer: Path) -> None:
    """Serve one request from standard input; the parent reads the file `answer`."""
    limits, module, name, args = pickle.loads(sys.stdin.buffer.read())  # noqa: S301  # from our parent
    offline = _leave_network()
    _limit(limits)
    try:
        result: tuple[str, object, bool] = (
            "value",
            getattr(import_module(module), name)(*args),
            offline,
        )
    except DovetailError as error:
        result = ("error", (error.code, str(error)), offline)
    except MemoryError:
        limit = f"{limits.memory / _GIB:.1f} GiB"
        text = f"the model asked for more than the {limit} of memory an untrusted model is given"
        result = ("error", (ModelLimitExceeded.__name__, text), offline)
    answer.write_bytes(pickle.dumps(result))
    sys.stderr.flush()
    os._exit(0)  # native threads of a hostile model are not waited for


if __name__ == "__main__":
    _child(Path(sys.argv[1]))
