"""Bundles on a device's disk."""

import os
import shutil
from pathlib import Path

import pytest
from tests.tiny_bundle import TinyBundle, write_tiny_bundle

from dovetail.bundle import Bundle
from dovetail_edge.cache import Cache, missing, needed


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle")


@pytest.fixture
def cache(tmp_path: Path, tiny: TinyBundle) -> Cache:
    """With the bundle in it."""
    made = Cache(tmp_path / "bundles")
    shutil.copytree(tiny.bundle.path, made.path(tiny.bundle.digest))
    return made


def test_a_plan_needs_its_segments_and_the_whole_only_to_go_on_alone(tiny: TinyBundle) -> None:
    """What runs in the cloud alone is not fetched."""
    shallow = tuple(rung for rung in tiny.plan().ladder if rung.cut <= 1)
    few = tiny.plan("cut1", ladder=shallow, fallback="Fail")
    alone = tiny.plan("cut1", ladder=shallow, fallback="Local")
    assert set(needed(few, tiny.bundle)) == set(tiny.bundle.needs(0, 1))
    assert set(needed(alone, tiny.bundle)) == set(tiny.bundle.needs(0, 3))


def test_a_bundle_is_found_when_all_is_there_that_the_plan_needs(
    cache: Cache, tiny: TinyBundle
) -> None:
    """A blob that is missing or short counts, one that no rung needs does not."""
    plan = tiny.plan("cut1")
    found = cache.find(plan)
    assert found is not None
    assert missing(plan, found) == []
    victim = needed(plan, found)[0]
    found.blob_path(victim).write_bytes(b"short")
    assert cache.find(plan) is None
    assert missing(plan, Bundle(found.path)) == [victim]


def test_a_folder_that_holds_another_bundle_is_none(cache: Cache, tiny: TinyBundle) -> None:
    """Whatever its name says."""
    wrong = "sha256:" + "0" * 64
    cache.path(tiny.bundle.digest).rename(cache.path(wrong))
    assert cache.open(wrong) is None
    assert cache.open(tiny.bundle.digest) is None


def test_mending_removes_what_is_damaged_and_nothing_else(cache: Cache, tiny: TinyBundle) -> None:
    """The same size with other bytes."""
    bundle = cache.open(tiny.bundle.digest)
    assert bundle is not None
    victim = max(needed(tiny.plan(), bundle), key=bundle.blobs.__getitem__)
    path = bundle.blob_path(victim)
    path.write_bytes(bytes(path.stat().st_size))
    cache.mend(tiny.bundle.digest)
    assert missing(tiny.plan(), bundle) == [victim]


def test_what_is_kept_is_in_use_or_was_last(tmp_path: Path) -> None:
    """All else goes."""
    cache = Cache(tmp_path)
    digests = ["sha256:" + letter * 64 for letter in "abcd"]
    for age, digest in enumerate(digests):
        cache.path(digest).mkdir()
        os.utime(cache.path(digest), (1000 - age, 1000 - age))
    cache.keep({digests[3]}, spare=1)
    assert [cache.path(digest).exists() for digest in digests] == [True, False, False, True]
    cache.keep({digests[3]})
    assert not cache.path(digests[0]).exists()


def test_a_given_bundle_is_found_and_never_changed(tmp_path: Path, tiny: TinyBundle) -> None:
    """It lies elsewhere."""
    cache = Cache(tmp_path / "none", tiny.bundle)
    assert cache.find(tiny.plan()) is tiny.bundle
    cache.keep(())
    cache.mend(tiny.bundle.digest)
    assert tiny.bundle.path.is_dir()
