"""The first process of a node: makes its mounts, then reaps what its pods leave.

Started as `unshare --mount --pid --fork --kill-child --mount-proc`: when it dies, the kernel ends
every process of the node and drops every mount, whatever state they are in. So nothing has to be
found and cleaned up, and a run that is killed leaves neither.

A kubelet sets settings of the kernel that belong to the whole machine. Here it finds files with the
values it wants in their place, and writes nothing. What a node keeps for good (folders of the kind
hostPath, logs) lies in a folder of its own, not in the machine's /var.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

_WANTED = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
_KEPT = ("lib", "log")


def main(ready: Path) -> None:
    """Make the mounts, create the file `ready` in the node's folder, then reap until killed."""
    # sockets, locks and network namespaces of containers: a node has its own
    _mount("-t", "tmpfs", "tmpfs", "/run")
    for name in _KEPT:
        own = ready.parent / "var" / name
        own.mkdir(parents=True)
        _mount("--bind", str(own), f"/var/{name}")
    settings = Path("/run/kernel")
    settings.mkdir()
    for number, (name, value) in enumerate(_WANTED.items()):
        file = settings / str(number)
        file.write_text(f"{value}\n")
        _mount("--bind", str(file), f"/proc/sys/{name}")
    # pods' volumes of the kind Bidirectional, and nothing of it on the machine
    _mount("--make-rshared", "/")
    ready.touch()
    while True:
        try:
            os.wait()
        except ChildProcessError:  # nothing to reap yet
            time.sleep(0.2)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
