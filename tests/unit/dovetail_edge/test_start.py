"""What an edge knows before it has asked anybody."""

from pathlib import Path

import pytest
from tests.tiny_bundle import TinyBundle, write_tiny_bundle

from dovetail.errors import AddressRefused, ManifestError
from dovetail.plan import Plan
from dovetail_edge import Credentials, store
from dovetail_edge.process import run
from dovetail_edge.start import Options, check_class, first_plans


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle")


def options(
    folder: Path, given: Plan | None, saved: Plan | None, device_class: str | None = None
) -> Options:
    plan = folder / "plan.json"
    if given is not None:
        plan.write_text(given.model_dump_json(by_alias=True))
    if saved is not None:
        store.save(folder / "state", saved)
    return Options(
        "http://127.0.0.1:9",
        device_class,
        Credentials(),
        plan=plan if given is not None else None,
        state=folder / "state",
    )


@pytest.mark.parametrize(("given", "saved"), [(4, 5), (5, 4)])
def test_the_newest_plan_at_hand_comes_first(
    tiny: TinyBundle, tmp_path: Path, given: int, saved: int
) -> None:
    """Both stay known: the bundle of one may be here, and that of the other not."""
    known = first_plans(options(tmp_path, tiny.plan(generation=given), tiny.plan(generation=saved)))
    assert [plan.generation for plan in known] == [5, 4]


def test_nothing_is_known_at_a_first_start(tmp_path: Path) -> None:
    """The pool is asked."""
    assert first_plans(options(tmp_path, None, None)) == []


@pytest.mark.parametrize("other", [{"deployment": "else/where"}, {"device_class": "robot"}])
def test_a_saved_plan_of_somebody_else_is_left_out(
    tiny: TinyBundle, tmp_path: Path, other: dict[str, str]
) -> None:
    """Whatever its generation."""
    given, saved = tiny.plan(generation=1), tiny.plan(generation=9, **other)  # type: ignore[arg-type]
    assert first_plans(options(tmp_path, given, saved, "camera")) == [given]


def test_a_plan_for_another_class_is_refused(tiny: TinyBundle, tmp_path: Path) -> None:
    """A device that was told its class takes no other's plan, from a file or from its pool."""
    mine = options(tmp_path, tiny.plan(), None, "robot")
    with pytest.raises(ManifestError, match="not 'robot'"):
        first_plans(mine)
    with pytest.raises(ManifestError, match="the pool's plan"):
        check_class(mine, tiny.plan(), "the pool's plan")


@pytest.mark.parametrize("text", ["", "{}", '{"generation": 0}', None])
def test_a_plan_file_that_does_not_hold_is_named(tmp_path: Path, text: str | None) -> None:
    """Missing, empty, or something else."""
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ManifestError, match=str(path)):
        first_plans(Options("http://127.0.0.1:9", None, Credentials(), plan=path))


def test_an_address_that_is_not_this_machines_is_refused_first(tmp_path: Path) -> None:
    """Before anybody is asked."""
    with pytest.raises(AddressRefused, match=r"192\.0\.2\.1:8000"):
        run(options(tmp_path, None, None), "192.0.2.1", 8000)
