"""docs/kubernetes.md, which is followed command by command."""

import json
import re
from pathlib import Path

import pytest
from tests.cluster.images import ROOMS

from dovetail.api import load_manifest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "kubernetes.md").read_text()
SCHEMA = json.loads((ROOT / "charts" / "dovetail" / "values.schema.json").read_text())
LOOP = r"for image in ([\w ]+);"
IMAGES = tuple(re.findall(LOOP, PAGE)[0].split())
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
    assert len(IMAGES) == len(dockerfiles)
    assert {tuple(loop.split()) for loop in re.findall(LOOP, PAGE)} == {IMAGES}
    targets = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^\$ make ([\w-]+)", PAGE, re.MULTILINE):
        assert re.search(rf"^{target}:", targets, re.MULTILINE)


def test_images_have_the_names_under_which_they_are_built():
    """An engine keeps whole names, and podman finds no image by a short one of docker's."""
    names = re.findall(r"(?:tag|save --output \S+) (\S+):0", PAGE)
    assert len(names) == 2
    for name in names:
        assert {name.replace("$image", image) for image in IMAGES} == {
            image.tag.split(":")[0] for image in ROOMS
        }


def test_no_example_is_applied_as_it_is():
    """Each names a server that is not there, which is to be replaced first."""
    assert all("https://models.example/" in path.read_text() for path in EXAMPLES)
    assert "kubectl apply -f examples/" not in PAGE


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
