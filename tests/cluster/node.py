"""A node: containerd, kubelet and kube-proxy in namespaces of its own.

What recurs in the settings: without CAP_SYS_RESOURCE nothing may raise its own limits or lower its
OOM score, so containerd and the kubelet are told not to try (`restrict_oom_score_adj`,
`KubeletInUserNamespace`). Pods are connected by the `ptp` plugin: what is routed passes the node's
own rules always, what is bridged only with a kernel module.
"""

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import psutil
import yaml
from tests.cluster.network import ADDRESSES, PODS, Network
from tests.cluster.prerequisites import PLUGINS
from tests.cluster.service import Service

ROOT: Final = Path(__file__).parents[2]
CGROUPS: Final = Path("/sys/fs/cgroup")
DNS: Final = "10.96.0.10"
PAUSE: Final = "docker.io/dovetail-test/pause:1"


class Node:
    """One node.

    Args:
        name: `cloud` or `edge`.
        network: the namespaces.
        folder: its state and logs, empty.
        store: containerd's images, kept from run to run.
        kubelet: the kubelet.
        proxy: the kube-proxy.
        kubeconfigs: files by user: this node and `proxy`.
        authority: certificate of the cluster's authority.
    """

    def __init__(
        self,
        name: str,
        network: Network,
        folder: Path,
        store: Path,
        *,
        kubelet: Path,
        proxy: Path,
        kubeconfigs: Mapping[str, Path],
        authority: Path,
    ) -> None:
        self.name, self.folder = name, folder
        self._network, self._store, self._authority = network, store, authority
        self._kubelet, self._proxy, self._kubeconfigs = kubelet, proxy, kubeconfigs
        self._init: Service | None = None
        self._services: list[Service] = []
        folder.mkdir(parents=True)

    @property
    def cgroup(self) -> str:
        """Name of its cgroup."""
        return self._network.namespace(self.name)

    def start(self) -> None:
        """Start what runs containers; `join` makes it a node."""
        ready = self.folder / "mounted"
        self._init = self._service(
            "init",
            [
                *self._network.inside(self.name),
                *["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"],
                *("python3", str(Path(__file__).with_name("node_init.py")), str(ready)),
            ],
        )
        self._init.wait(ready.is_file, "its mounts are there")
        self._store.mkdir(parents=True, exist_ok=True)
        containerd = self._enter("containerd", ["containerd", "-c", str(self._containerd())])
        containerd.wait(self._answers, "it answers")
        if self._forget():
            self._end(containerd)
            containerd.start()
            containerd.wait(self._answers, "it answers")

    def join(self) -> None:
        """Start what makes it a node of the cluster."""
        make_cgroup(self.cgroup)
        config = self._write("kubelet.yaml", self._kubelet_settings())
        command = [str(self._kubelet), f"--config={config}", f"--hostname-override={self.name}"]
        command += [f"--kubeconfig={self._kubeconfigs[self.name]}"]
        command += [f"--root-dir={self.folder / 'kubelet'}", f"--node-ip={ADDRESSES[self.name]}"]
        command += ["--cert-dir=" + str(self.folder / "pki")]
        command += [f"--register-with-taints={_TAINTS[self.name]}"] if self.name in _TAINTS else []
        command += [f"--node-labels={_LABELS[self.name]}"]
        self._enter("kubelet", command)
        config = self._write("proxy.yaml", self._proxy_settings())
        self._enter("kube-proxy", [str(self._proxy), f"--config={config}"])

    def stop(self) -> None:
        """End it, and all its pods with it."""
        if self._init is not None:
            self._init.stop(signal.SIGKILL)
        for service in self._services:
            service.stop(signal.SIGKILL)
        remove_cgroup(self.cgroup)

    def ctr(self, *arguments: str) -> str:
        """Ask containerd; returns what it said."""
        command = ["ctr", "-a", str(self.folder / "containerd.sock"), "-n", "k8s.io", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()}")
        return done.stdout

    def load(self, archives: Iterable[tuple[str, str, Path]]) -> None:
        """Import images that are not there.

        Args:
            archives: name, content key and OCI archive of each.
        """
        marks = self._store / "keys"
        marks.mkdir(exist_ok=True)
        present = set(self.ctr("images", "list", "-q").split())
        for name, key, archive in archives:
            mark = marks / name.replace("/", "_")
            if name in present and mark.is_file() and mark.read_text() == key:
                continue
            self.ctr("images", "import", str(archive))
            mark.write_text(key)

    def kill(self, pod: str, container: str) -> None:
        """Kill a container's processes, as if it had crashed."""
        labels = {"io.kubernetes.pod.name": pod, "io.kubernetes.container.name": container}
        wanted = ",".join(f'labels."{key}"=={value}' for key, value in labels.items())
        known = set(self.ctr("containers", "list", "-q", wanted).split())
        (found,) = known & set(self.ctr("tasks", "list", "-q").split())  # others have ended
        self.ctr("tasks", "kill", "--all", "--signal", "SIGKILL", found)

    def inside(self, *command: str) -> list[str]:
        """A command, as it is run among the node's processes, mounts and links."""
        assert self._init is not None, f"{self.name} was not started"
        (unshare,) = psutil.Process(self._init.pid).children()
        namespaces = ["--mount", "--pid", f"--net=/run/netns/{self._network.namespace(self.name)}"]
        return ["nsenter", f"--target={unshare.pid}", *namespaces, *command]

    def _enter(self, name: str, command: list[str]) -> Service:
        return self._service(name, self.inside(*command))

    def _service(self, name: str, command: list[str]) -> Service:
        service = Service(command, self.folder / f"{name}.log")
        service.start()
        if name != "init":
            self._services.append(service)
        return service

    def _forget(self) -> bool:
        """Drop the containers of an earlier run, of which only the store knows; true if any."""
        names = self.ctr("containers", "list", "-q").split()
        for name in names:
            self.ctr("containers", "delete", name)
        return bool(names)

    def _end(self, service: Service) -> None:
        """End a program in the node: what we started only waits for it, in another namespace."""
        (program,) = psutil.Process(service.pid).children()
        program.terminate()
        program.wait(10)
        service.stop()

    def _answers(self) -> bool:
        try:
            self.ctr("version")
        except RuntimeError:
            return False
        return True

    def _write(self, name: str, document: Mapping[str, Any]) -> Path:
        path = self.folder / name
        path.write_text(yaml.safe_dump(dict(document)))
        return path

    def _containerd(self) -> Path:
        networks = self.folder / "cni"
        networks.mkdir()
        (networks / "10-pods.conflist").write_text(json.dumps(self._pod_network()))
        path = self.folder / "containerd.toml"
        path.write_text(
            f"""version = 2
root = "{self._store}"
state = "/run/containerd/state"
[grpc]
  address = "{self.folder / "containerd.sock"}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{PLUGINS}"
    conf_dir = "{networks}"
"""
        )
        return path

    def _pod_network(self) -> Mapping[str, Any]:
        addresses = {
            "type": "host-local",
            "dataDir": str(self.folder / "addresses"),
            "ranges": [[{"subnet": PODS[self.name]}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        }
        plugins = [
            {"type": "ptp", "ipMasq": False, "ipam": addresses},
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ]
        return {"cniVersion": "0.4.0", "name": "pods", "plugins": plugins}

    def _kubelet_settings(self) -> Mapping[str, Any]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "x509": {"clientCAFile": str(self._authority)},
                "webhook": {"enabled": True},
            },
            "authorization": {"mode": "Webhook"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.cgroup}",
            "clusterDomain": "cluster.local",
            "clusterDNS": [DNS],
            "containerRuntimeEndpoint": f"unix://{self.folder / 'containerd.sock'}",
            "featureGates": {"KubeletInUserNamespace": True},
            "failSwapOn": False,
            "failCgroupV1": False,
            "oomScoreAdj": 0,
            "maxOpenFiles": 10000,
            "localStorageCapacityIsolation": False,
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {"memory.available": "100Mi"},
            "nodeStatusUpdateFrequency": "4s",
            "syncFrequency": "10s",  # how soon a ConfigMap's new content is in its pods
            "volumePluginDir": str(self.folder / "plugins"),
            "podLogsDir": str(self.folder / "pods"),
            "staticPodPath": "",
        }

    def _proxy_settings(self) -> Mapping[str, Any]:
        return {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": str(self._kubeconfigs["proxy"])},
            "mode": "iptables",
            "clusterCIDR": "10.244.0.0/16",
            "hostnameOverride": self.name,
            "conntrack": {"maxPerCore": 0, "min": 0},
        }


_TAINTS: Final = {"edge": "dovetail.dev/edge=true:NoSchedule"}
_LABELS: Final = {"cloud": "dovetail.dev/test=cloud", "edge": "dovetail.dev/edge=true"}


def make_cgroup(name: str) -> None:
    """Make a subtree for a node: two kubelets would fight over one."""
    if (CGROUPS / "cgroup.controllers").is_file():
        path = CGROUPS / name
        path.mkdir(exist_ok=True)
        for one in (CGROUPS / "cgroup.controllers").read_text().split():
            (path / "cgroup.subtree_control").write_text(f"+{one}")
        return
    for hierarchy in CGROUPS.iterdir():
        if (hierarchy / "cgroup.procs").is_file():
            (hierarchy / name).mkdir(exist_ok=True)
    for setting in ("cpuset.cpus", "cpuset.mems"):
        source = CGROUPS / "cpuset" / setting
        if source.is_file():
            shutil.copyfile(source, CGROUPS / "cpuset" / name / setting)


def remove_cgroup(name: str) -> None:
    """Remove a node's subtree from every hierarchy; its processes have ended."""
    for top in (CGROUPS / name, *(path / name for path in CGROUPS.iterdir())):
        for folder in sorted(top.rglob("*"), key=lambda p: -len(p.parts)) if top.is_dir() else ():
            if folder.is_dir():
                _remove_folder(folder)
        if top.is_dir():
            _remove_folder(top)


def _remove_folder(path: Path) -> None:
    for _ in range(100):
        try:
            path.rmdir()
            return
        except OSError:  # a process that was killed is not yet gone
            time.sleep(0.05)
