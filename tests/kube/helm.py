"""Helm for tests: the real program on the chart as it is, alone or against an API server."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.kube.apiserver import ApiServer, Json
from tests.kube.binaries import KUBERNETES, find
from tests.kube.operators import NAMESPACE

from dovetail.errors import MissingTool

CHART = Path(__file__).parents[2] / "charts" / "dovetail"
RELEASE = "dovetail"
REGISTRY = {"registry": {"url": "http://registry.example:5000"}}


class HelmFailed(Exception):
    """Helm said no; the message is what it said."""


@dataclass(frozen=True, slots=True)
class Helm:
    """Runs helm.

    Attributes:
        program: the executable.
        folder: where values are written.
    """

    program: Path
    folder: Path

    def run(self, *arguments: str, values: Json | None = None) -> str:
        """Run it; returns what it printed, raises `HelmFailed`."""
        command = [str(self.program), *arguments]
        if values is not None:
            file = self.folder / "values.yaml"
            file.write_text(yaml.safe_dump(values))
            command += ["--values", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise HelmFailed(done.stdout + done.stderr)
        return done.stdout

    def template(self, **values: Any) -> list[Json]:
        """The objects that a release would have, tests among them."""
        text = self.run(
            "template",
            RELEASE,
            str(CHART),
            f"--namespace={NAMESPACE}",
            f"--kube-version={KUBERNETES}",
            values=REGISTRY | values,
        )
        return [item for item in yaml.safe_load_all(text) if item]

    def on(self, server: ApiServer, action: str, *flags: str, **values: Any) -> str:
        """Install, upgrade or uninstall the release on a server."""
        arguments = [action, RELEASE, *([] if action == "uninstall" else [str(CHART)]), *flags]
        arguments += [f"--kubeconfig={server.kubeconfig}", f"--namespace={NAMESPACE}"]
        return self.run(*arguments, values=None if action == "uninstall" else REGISTRY | values)


def found_helm(folder: Path) -> Helm:
    """Helm, or the test is skipped with what to do."""
    try:
        return Helm(find("helm").path, folder)
    except MissingTool as error:
        pytest.skip(str(error))


def one(objects: list[Json], kind: str, name: str) -> Json:
    """The object of that kind and name."""
    (found,) = [x for x in objects if x["kind"] == kind and x["metadata"]["name"] == name]
    return found


def pods(objects: list[Json]) -> Iterator[Json]:
    """Every pod that the objects are or make, as a Pod."""
    for item in objects:
        if item["kind"] == "Pod":
            yield item
        elif "template" in item.get("spec", {}):
            yield {"apiVersion": "v1", "kind": "Pod", **item["spec"]["template"]} | {
                "metadata": {"name": item["metadata"]["name"]}
            }


def leaves(schema: Json, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Json]]:
    """Every value that the chart's schema knows, by its path; `[]` is an item of a list."""
    for name, value in schema.get("properties", {}).items():
        path = (*prefix, name)
        if "properties" in value:
            yield from leaves(value, path)
            continue
        yield path, value
        yield from leaves(value.get("items", {}), (*path, "[]"))
