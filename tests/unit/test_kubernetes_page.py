"""docs/kubernetes.md, which is followed command by command."""

import json
import re
from pathlib import Path

import pytest

from dovetail.api import load_manifest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "kubernetes.md").read_text()
SCHEMA = json.loads((ROOT / "charts" / "dovetail" / "values.schema.json").read_text())
EXAMPLES = sorted((ROOT / "examples" / "kubernetes").glob("*.yaml"))


def is_value(path):
    """Whether the chart has a value of that path."""
    schema = SCHEMA
    for step in re.sub(r"\[\d+\]", ".[]", path).split("."):
        schema = schema.get("items") if step == "[]" else schema.get("properties", {}).get(step)
        if schema is None:
            return False
    return True


def test_every_value_that_is_set_is_one_of_the_chart():
    """A command that helm would refuse, or ignore, is not on the page."""
    paths = re.findall(r"--set '?([\w.\[\]]+)=", PAGE)
    named = re.findall(
        r"`((?:images|registry|gateway|networkPolicy|operator|pools|crds)\.[\w.]+)", PAGE
    )
    assert len(paths) > 5
    assert [path for path in (*paths, *named) if not is_value(path)] == []


def test_every_image_and_target_is_one_that_is_built():
    """The loops over images name all that `make images` builds, and `make` knows its targets."""
    dockerfiles = [path for path in ROOT.glob("*/*Dockerfile") if ".venv" not in path.parts]
    for loop in re.findall(r"for image in ([\w ]+);", PAGE):
        assert len(loop.split()) == len(dockerfiles)
    targets = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^\$ make ([\w-]+)", PAGE, re.MULTILINE):
        assert re.search(rf"^{target}:", targets, re.MULTILINE)


def test_every_file_is_there():
    """Links and arguments lead somewhere."""
    for path in re.findall(r"\]\((\.\./[^)#]+|[^)#:]+\.md)\)", PAGE):
        assert (ROOT / "docs" / path).exists(), path
    for path in re.findall(r"examples/kubernetes/[\w.-]+\.yaml", PAGE):
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_a_deployment(path):
    """What is applied by the page is what the types know, and is on the page."""
    assert load_manifest(path).metadata.name
    assert f"examples/kubernetes/{path.name}" in PAGE
