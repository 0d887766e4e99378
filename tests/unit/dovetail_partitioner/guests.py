"""Functions that run in the sandbox."""

import ctypes
import socket

from dovetail.errors import UnboundShape
from dovetail_partitioner.graph import TensorInfo


def describe(name: str) -> TensorInfo:
    """Answer with one of our classes."""
    return TensorInfo(name, "float32", (1,), 4)


def refuse() -> None:
    """Raise a typed error."""
    raise UnboundShape("input 'x', axis 3")


def allocate(size: int) -> int:
    """Ask for memory."""
    return len(bytearray(size))


def spin() -> None:
    """Never end."""
    while True:
        pass


def crash() -> None:
    """Read where nothing is."""
    ctypes.string_at(0)


def reach_loopback() -> bool:
    """Whether a datagram can be sent on loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        try:
            link.connect(("127.0.0.1", 9))
        except OSError:
            return False
        return True
