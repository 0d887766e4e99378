"""Ends every process of a local pool, whoever started it and whatever became of its parent.

Ray is a tree of daemons: killing one piece leaves others that nobody owns any more (an HAProxy
outlives its manager, and keeps the port). So every process of a pool carries a mark in its
environment, which children inherit, and ending the pool means ending each process with the mark,
by pid. A process that sets its title writes over a part of what the kernel shows of its
environment, so the mark is in the name of the pool's folder too, which many of Ray's variables
hold.

`python -m dovetail_cli.ray_guard MARK FOLDER` waits until its standard input ends, which it does
when the process that started the pool is gone, for whatever reason, then ends the pool and removes
its folder. No signal handler could promise that: nobody handles SIGKILL.
"""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psutil

MARK: Final = "DOVETAIL_POOL"
_PATIENCE = 3.0  # seconds between asking and killing
_LIMIT = 20.0  # seconds after which what is left cannot be killed by us


def folder_name(mark: str) -> str:
    """Name of the folder of the pool with that mark."""
    return f"dv-{mark}"


def marked(mark: str) -> Iterator[psutil.Process]:
    """Every process of the pool with that mark."""
    signs = (f"{MARK}={mark}".encode(), f"/{folder_name(mark)}/".encode())
    for process in psutil.process_iter():
        try:
            shown = _environment(process)
        except (psutil.Error, OSError):
            continue  # gone meanwhile, or somebody else's
        if process.pid != os.getpid() and any(sign in shown for sign in signs):
            yield process


def _environment(process: psutil.Process) -> bytes:
    """What the kernel shows of a process's environment, also behind a part written over."""
    if sys.platform == "linux":
        return Path(f"/proc/{process.pid}/environ").read_bytes()
    return "\0".join(f"{name}={value}" for name, value in process.environ().items()).encode()


def end_pool(mark: str) -> None:
    """End every process with that mark: ask, wait a little, kill, until none is left."""
    first = list(marked(mark))
    for process in first:
        _signal(process, kill=False)
    psutil.wait_procs(first, timeout=_PATIENCE)
    stop = time.monotonic() + _LIMIT
    while (left := list(marked(mark))) and time.monotonic() < stop:
        for process in left:
            _signal(process, kill=True)
        psutil.wait_procs(left, timeout=1.0)


def _signal(process: psutil.Process, *, kill: bool) -> None:
    try:
        if kill:
            process.kill()
        else:
            process.terminate()
    except psutil.Error:
        return  # gone meanwhile


def main(mark: str, folder: Path) -> None:
    """Wait for the end of standard input, then end the pool and remove its folder."""
    sys.stdin.buffer.read()
    end_pool(mark)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
