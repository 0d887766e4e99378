"""The last plan on disk."""

from pathlib import Path

import pytest
from tests.tiny_bundle import TinyBundle, write_tiny_bundle

from dovetail_edge import store


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle")


def test_the_higher_generation_starts(tiny: TinyBundle, tmp_path: Path) -> None:
    """Saved or given, whichever is newer."""
    store.save(tmp_path, tiny.plan("cut2", generation=5))
    assert store.newest(tmp_path, tiny.plan(generation=4)).default == "cut2"
    assert store.newest(tmp_path, tiny.plan("cloud", generation=6)).default == "cloud"


def test_nothing_saved_is_no_error(tiny: TinyBundle, tmp_path: Path) -> None:
    """A first start has the given plan only."""
    assert store.newest(tmp_path / "never made", tiny.plan()) == tiny.plan()


@pytest.mark.parametrize("content", [b"", b"{", b'{"generation": 9}', b"\xff\x00"])
def test_a_damaged_plan_is_left_out(tiny: TinyBundle, tmp_path: Path, content: bytes) -> None:
    """What does not parse must not keep a device from starting."""
    (tmp_path / "plan.json").write_bytes(content)
    assert store.newest(tmp_path, tiny.plan()) == tiny.plan()


@pytest.mark.parametrize(
    "change",
    [{"bundle": "sha256:" + "1" * 64}, {"device_class": "robot"}, {"deployment": "other/one"}],
)
def test_a_plan_of_something_else_is_left_out(
    tiny: TinyBundle, tmp_path: Path, change: dict[str, str]
) -> None:
    """A folder that was used for another deployment, class or bundle is no plan for this one."""
    store.save(tmp_path, tiny.plan(generation=9).model_copy(update=change))
    assert store.newest(tmp_path, tiny.plan()) == tiny.plan()


def test_saving_leaves_one_file_and_no_temporary_one(tiny: TinyBundle, tmp_path: Path) -> None:
    """Written aside and renamed."""
    for generation in (1, 2):
        store.save(tmp_path, tiny.plan(generation=generation))
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
