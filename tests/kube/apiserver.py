"""A real Kubernetes API server for tests: etcd and kube-apiserver, nothing between.

There are no nodes and no controllers: what a Job, a Deployment or garbage collection would do does
not happen here. Admission, defaulting, pruning, CEL, field validation, server-side apply, watches
and conflicts are the real ones, which is what a custom resource and an operator must be tested on.

Every start is alone: free ports of loopback, a folder of its own for data, keys and logs, a random
token. The server's certificate is one that it signs for itself; clients trust that one only.
"""

import secrets
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx2
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.kube.binaries import Binary

_READY_S: Final = 90.0
_STOP_S: Final = 20.0
_ATTEMPTS: Final = 3  # another process may take a port between its choice and its use
_CRDS: Final = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"

# A test run that is killed runs no clean-up; with util-linux the kernel ends what it started.
_TIED: Final = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []

Json = dict[str, Any]


class ApiServerFailed(RuntimeError):
    """A program of the control plane ended or did not get ready; the message ends with its log."""


class Refused(Exception):
    """The API server refused a request.

    Attributes:
        code: HTTP status code.
        message: what `kubectl` would print.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class Program:
    """A program that runs.

    Attributes:
        name: what it is called.
        process: its process, for those who stop or kill it.
        log: file with what it says.
    """

    name: str
    process: subprocess.Popen[bytes]
    log: Path


@dataclass(frozen=True, slots=True)
class ApiServer:
    """A running API server.

    Attributes:
        url: `https://127.0.0.1:PORT`.
        token: bearer token of a member of `system:masters`.
        certificate: file with what a client must trust.
        kubeconfig: file for `kubectl`, `helm` and client libraries.
        etcd: the running etcd.
        apiserver: the running kube-apiserver.
        client: an HTTP client that carries the token.
    """

    url: str
    token: str
    certificate: Path
    kubeconfig: Path
    etcd: Program
    apiserver: Program
    client: httpx2.Client

    def request(self, method: str, path: str, body: Any = None, **options: Any) -> Json:
        """One request.

        Args:
            method: HTTP method.
            path: path, with its query if `params` is not among the options.
            body: sent as JSON unless None.
            options: for the HTTP client, such as `headers` or `params`.

        Raises:
            Refused: the answer is 400 or above.
        """
        answer = self.client.request(method, path, json=body, **options)
        content: Json = answer.json()
        if answer.is_error:
            raise Refused(answer.status_code, content.get("message", answer.text))
        return content

    def define(self, definition: Mapping[str, Any]) -> Json:
        """Create a CustomResourceDefinition, wait until it is served, and return it.

        Raises:
            Refused: it is not one that the API server accepts, to the letter.
        """
        self.request("POST", _CRDS, definition, params={"fieldValidation": "Strict"})
        path = f"{_CRDS}/{definition['metadata']['name']}"

        def established() -> bool:
            conditions = self.request("GET", path)["status"].get("conditions") or []
            return ("Established", "True") in [
                (item["type"], item["status"]) for item in conditions
            ]

        _wait(established, f"{path} is served", self.etcd, self.apiserver)
        return self.request("GET", path)


@contextmanager
def running(folder: Path, etcd: Binary, program: Binary, *flags: str) -> Iterator[ApiServer]:
    """Start an API server with its etcd, and stop both at the end, whatever happens.

    Args:
        folder: an empty one; data, keys and logs go there.
        etcd: the etcd to run.
        program: the kube-apiserver to run.
        flags: more of its flags.

    Raises:
        ApiServerFailed: one of them ended or did not get ready.
    """
    with ExitStack() as stack:
        for attempt in range(1, _ATTEMPTS + 1):
            home = folder / str(attempt)
            home.mkdir(parents=True)
            try:
                server = stack.enter_context(_started(home, etcd, program, flags))
                break
            except ApiServerFailed:
                if attempt == _ATTEMPTS:
                    raise
        yield server


@contextmanager
def _started(
    home: Path, etcd: Binary, program: Binary, flags: tuple[str, ...]
) -> Iterator[ApiServer]:
    peers, clients, secure = _free_ports(3)
    url, token = f"https://127.0.0.1:{secure}", secrets.token_urlsafe(24)
    certificate = home / "certs" / "apiserver.crt"
    kubeconfig = _kubeconfig(home, url, token, certificate)
    _write_keys(home, token)
    with (
        _process(home / "etcd.log", _etcd(etcd, home, peers, clients)) as store,
        _process(
            home / "kube-apiserver.log", [*_apiserver(program, home, clients, secure), *flags]
        ) as api,
    ):
        _wait(certificate.is_file, "it has a certificate", store, api)
        with httpx2.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {token}"},
            verify=ssl.create_default_context(cafile=certificate),
            timeout=30.0,
            trust_env=False,
        ) as client:
            _wait(lambda: _ready(client), "it is ready", store, api)
            yield ApiServer(url, token, certificate, kubeconfig, store, api, client)


def _etcd(program: Binary, home: Path, peers: int, clients: int) -> list[str]:
    at_peers, at_clients = (f"http://127.0.0.1:{port}" for port in (peers, clients))
    return [
        str(program.path),
        f"--data-dir={home / 'etcd'}",
        f"--listen-client-urls={at_clients}",
        f"--advertise-client-urls={at_clients}",
        f"--listen-peer-urls={at_peers}",
        f"--initial-advertise-peer-urls={at_peers}",
        f"--initial-cluster=default={at_peers}",
        "--unsafe-no-fsync",  # what is stored need not outlive the test
    ]


def _apiserver(program: Binary, home: Path, etcd: int, port: int) -> list[str]:
    return [
        str(program.path),
        f"--etcd-servers=http://127.0.0.1:{etcd}",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        f"--secure-port={port}",
        f"--cert-dir={home / 'certs'}",
        f"--token-auth-file={home / 'tokens.csv'}",
        "--authorization-mode=RBAC",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={home / 'accounts.key'}",
        f"--service-account-signing-key-file={home / 'accounts.key'}",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--allow-privileged=true",
        "--disable-admission-plugins=ServiceAccount",  # nobody is here to make the accounts
    ]


def _write_keys(home: Path, token: str) -> None:
    (home / "tokens.csv").write_text(f'{token},admin,admin,"system:masters"\n')
    key = ec.generate_private_key(ec.SECP256R1())
    (home / "accounts.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )


def _kubeconfig(home: Path, url: str, token: str, certificate: Path) -> Path:
    cluster = {"server": url, "certificate-authority": str(certificate)}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "admin", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
        "current-context": "test",
    }
    path = home / "kubeconfig"
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(document))
    return path


@contextmanager
def _process(log: Path, command: list[str]) -> Iterator[Program]:
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [*_TIED, *command], stdout=sink, stderr=subprocess.STDOUT, cwd=log.parent
        )
    try:
        yield Program(log.stem, process, log)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ready(client: httpx2.Client) -> bool:
    """Whether the server is ready and has made the namespace that everyone uses."""
    try:
        ready = client.get("/readyz").is_success
        return ready and client.get("/api/v1/namespaces/default").is_success
    except httpx2.TransportError:
        return False


def _wait(done: Callable[[], bool], until: str, *programs: Program) -> None:
    end = time.monotonic() + _READY_S
    while not done():
        for program in programs:
            if program.process.poll() is not None:
                raise _failed(program, f"ended with {program.process.returncode} before {until}")
        if time.monotonic() > end:
            raise _failed(programs[-1], f"took over {_READY_S:g} s until {until}")
        time.sleep(0.1)


def _failed(program: Program, what: str) -> ApiServerFailed:
    said = program.log.read_text(errors="replace")[-2000:]
    return ApiServerFailed(f"{program.name} {what}; the end of its log:\n{said}")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [item.getsockname()[1] for item in sockets]
    for item in sockets:
        item.close()
    return ports
