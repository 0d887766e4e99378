"""The control plane: etcd, kube-apiserver, controllers, scheduler and CoreDNS, in `cloud`."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.cluster.network import CLOUD, SERVICES, Network
from tests.cluster.pki import Authority
from tests.cluster.service import Service
from tests.kube.binaries import Binary

_ETCD: Final = "http://127.0.0.1:2379"
_PEERS: Final = "http://127.0.0.1:2380"
DNS_PORT: Final = 5353
_NAMES: Final = (
    "127.0.0.1",
    CLOUD,
    "10.96.0.1",
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
)
# user -> groups
USERS: Final = {
    "admin": ("admin", "system:masters"),
    "cloud": ("system:node:cloud", "system:nodes"),
    "edge": ("system:node:edge", "system:nodes"),
    "proxy": ("system:kube-proxy", ""),
    "scheduler": ("system:kube-scheduler", ""),
    "controllers": ("system:kube-controller-manager", ""),
    "dns": ("dns", "system:masters"),
}


class ControlPlane:
    """The control plane's programs and what identifies its users.

    Args:
        folder: its state and logs, empty.
        network: the namespaces.
        programs: the programs by name.
    """

    def __init__(self, folder: Path, network: Network, programs: Mapping[str, Binary]) -> None:
        self.folder, self._network, self._programs = folder, network, programs
        folder.mkdir(parents=True, mode=0o700)
        self.authority = Authority.make(folder / "pki")
        self.authority.sign("apiserver", "kube-apiserver", names=[*_NAMES, network.entry])
        self.authority.sign("kubelets", "apiserver", "system:masters")
        self.tokens = {user: secrets.token_urlsafe(24) for user in USERS}
        self.kubeconfigs = {user: self._kubeconfig(user, CLOUD) for user in USERS}
        self.kubeconfig = self._kubeconfig("admin", network.entry, "outside")
        self._write_accounts()
        self.etcd = self._service("etcd", self._etcd())
        self.apiserver = self._service("kube-apiserver", self._apiserver())
        self._others = [
            self._service("kube-controller-manager", self._controllers()),
            self._service("kube-scheduler", self._scheduler()),
            self._service("coredns", ["-conf", str(self._corefile())]),
        ]

    @property
    def certificate(self) -> Path:
        """What clients must trust."""
        return self.folder / "pki" / "ca.crt"

    @property
    def url(self) -> str:
        """The API server, as the machine's own namespace reaches it."""
        return f"https://{self._network.entry}:6443"

    def start(self) -> None:
        """Start the API server and its store."""
        self.etcd.start()
        self.apiserver.start()

    def join(self) -> None:
        """Start the rest; the API server is ready."""
        for service in self._others:
            service.start()

    def stop(self) -> None:
        """End all of it."""
        for service in (*self._others, self.apiserver, self.etcd):
            service.stop()

    def _service(self, name: str, arguments: list[str]) -> Service:
        program = [*self._network.inside("cloud"), str(self._programs[name].path)]
        return Service([*program, *arguments], self.folder / f"{name}.log")

    def _etcd(self) -> list[str]:
        return [
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={_ETCD}",
            f"--advertise-client-urls={_ETCD}",
            f"--listen-peer-urls={_PEERS}",
            f"--initial-advertise-peer-urls={_PEERS}",
            f"--initial-cluster=default={_PEERS}",
            "--unsafe-no-fsync",  # what is stored need not outlive the run
        ]

    def _apiserver(self) -> list[str]:
        keys = self.folder / "pki"
        return [
            f"--etcd-servers={_ETCD}",
            f"--advertise-address={CLOUD}",
            "--secure-port=6443",
            f"--tls-cert-file={keys / 'apiserver.crt'}",
            f"--tls-private-key-file={keys / 'apiserver.key'}",
            f"--client-ca-file={keys / 'ca.crt'}",
            f"--token-auth-file={self.folder / 'tokens.csv'}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            f"--kubelet-client-certificate={keys / 'kubelets.crt'}",
            f"--kubelet-client-key={keys / 'kubelets.key'}",
            "--kubelet-preferred-address-types=InternalIP",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={keys / 'accounts.key'}",
            f"--service-account-signing-key-file={keys / 'accounts.key'}",
            f"--service-cluster-ip-range={SERVICES}",
            "--allow-privileged=true",
        ]

    def _controllers(self) -> list[str]:
        keys = self.folder / "pki"
        return [
            f"--kubeconfig={self.kubeconfigs['controllers']}",
            f"--service-account-private-key-file={keys / 'accounts.key'}",
            f"--root-ca-file={keys / 'ca.crt'}",
            f"--cert-dir={self.folder / 'controllers'}",
            "--use-service-account-credentials=true",
            "--leader-elect=false",
            # a node that is cut off is noticed within a test, not after 40 s
            "--node-monitor-grace-period=20s",
        ]

    def _scheduler(self) -> list[str]:
        return [
            f"--kubeconfig={self.kubeconfigs['scheduler']}",
            f"--cert-dir={self.folder / 'scheduler'}",
            "--leader-elect=false",
        ]

    def _corefile(self) -> Path:
        path = self.folder / "Corefile"
        path.write_text(
            f""".:{DNS_PORT} {{
  bind {CLOUD}
  errors
  kubernetes cluster.local in-addr.arpa {{
    kubeconfig {self.kubeconfigs["dns"]} main
  }}
  cache 5
}}
"""
        )
        return path

    def _write_accounts(self) -> None:
        lines = [f'{self.tokens[u]},{name},{u},"{group}"' for u, (name, group) in USERS.items()]
        (self.folder / "tokens.csv").write_text("\n".join([*lines, ""]))
        key = ec.generate_private_key(ec.SECP256R1())
        (self.folder / "pki" / "accounts.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.TraditionalOpenSSL,
                serialization.NoEncryption(),
            )
        )

    def _kubeconfig(self, user: str, host: str, name: str = "") -> Path:
        server = {"server": f"https://{host}:6443", "certificate-authority": str(self.certificate)}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "main", "cluster": server}],
            "users": [{"name": "main", "user": {"token": self.tokens[user]}}],
            "contexts": [{"name": "main", "context": {"cluster": "main", "user": "main"}}],
            "current-context": "main",
        }
        path = self.folder / f"{name or user}.kubeconfig"
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(document))
        return path
