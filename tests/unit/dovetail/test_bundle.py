"""Bundles: written whole or not at all, read strictly."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from tests.tiny_bundle import TinyBundle, write_tiny_bundle

from dovetail.bundle import ARTIFACT_TYPE, CONFIG_TYPE, Bundle, BundleWriter, rung_id
from dovetail.errors import BundleCorrupt, BundleError, UnknownRung
from dovetail.layout import INDEX_TYPE, MANIFEST_TYPE, canonical_json, digest_of
from dovetail.runtime import SegmentRuntime


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> TinyBundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny", side=8, width=4)


@pytest.fixture
def folder(tiny, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny.bundle.path, tmp_path / "copy"))


def bytes_of(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()
    }


def test_the_same_model_gives_the_same_bytes(tiny, tmp_path):
    """Verify that a second writing equals the first, file by file."""
    again = write_tiny_bundle(tmp_path / "again", side=8, width=4)

    assert bytes_of(again.bundle.path) == bytes_of(tiny.bundle.path)
    assert again.bundle.version == tiny.bundle.digest.removeprefix("sha256:")[:12]


def test_another_model_is_another_version(tiny, tmp_path):
    """Verify that the version follows the weights."""
    other = write_tiny_bundle(tmp_path / "other", side=8, width=4, seed=1)

    assert other.bundle.digest != tiny.bundle.digest


def test_a_bundle_survives_writing_and_reading(tiny):
    """Verify that every blob is there and the description is the one written."""
    tiny.bundle.verify()

    assert Bundle(tiny.bundle.path).config == tiny.bundle.config
    assert set(tiny.bundle.needs(0, 3)) <= tiny.bundle.blobs.keys()
    assert set(tiny.bundle.needs(1, 2)) < set(tiny.bundle.needs(0, 3))


def test_one_changed_byte_anywhere_is_noticed(folder):
    """Verify that opening or verifying fails for a flip in any file, at every place tried."""
    for file in sorted(one for one in folder.rglob("*") if one.is_file()):
        good = file.read_bytes()
        blob = "blobs" in file.parts  # guarded by a digest; index and marker only by their form
        for at in range(0, len(good), max(1, len(good) // 16) if blob else 1):
            for flip in (1 << at % 8,) if blob else (0x01, 0x02, 0x20, 0x80):
                file.write_bytes(good[:at] + bytes([good[at] ^ flip]) + good[at + 1 :])
                with pytest.raises(BundleError):
                    Bundle(folder).verify()
        file.write_bytes(good)
    Bundle(folder).verify()


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"x"])
def test_a_blob_of_another_size_is_noticed(tiny, folder, change):
    """Verify truncation and bytes behind the end, for every blob."""
    for digest in tiny.bundle.blobs:
        file = folder / "blobs" / "sha256" / digest.removeprefix("sha256:")
        good = file.read_bytes()
        file.write_bytes(change(good))
        with pytest.raises(BundleCorrupt, match=digest):
            Bundle(folder).verify()
        file.write_bytes(good)


def test_a_missing_blob_is_named(tiny, folder):
    """Verify the error for a layout that was copied in part."""
    group = tiny.bundle.config.groups[0]
    (folder / "blobs" / "sha256" / group.data.removeprefix("sha256:")).unlink()

    with pytest.raises(BundleCorrupt, match=group.data):
        Bundle(folder).verify()


def test_a_changed_weight_is_noticed_before_it_is_loaded(tiny, folder):
    """Verify that no session is made of weights that are not the bundle's."""
    data = tiny.bundle.config.groups[1].data
    file = folder / "blobs" / "sha256" / data.removeprefix("sha256:")
    good = file.read_bytes()
    file.write_bytes(good[:5] + bytes([good[5] ^ 1]) + good[6:])

    with pytest.raises(BundleCorrupt, match=data):
        SegmentRuntime(Bundle(folder), (1, 2), first=1)
    SegmentRuntime(Bundle(folder), (), last=1)  # segment 0 doesn't use that weight


Change = tuple[str, Callable[[Any], None]]


def rewrite(folder: Path, change: Change) -> None:
    """Change index, manifest or config; what points at it gets its new digest and size."""
    blobs = folder / "blobs" / "sha256"
    index = json.loads((folder / "index.json").read_bytes())
    [entry] = index["manifests"]
    manifest = json.loads((blobs / entry["digest"][7:]).read_bytes())
    pointer = manifest["config"]
    config = json.loads((blobs / pointer["digest"][7:]).read_bytes())
    which, apply = change
    for name, document, named_by in (("config", config, pointer), ("manifest", manifest, entry)):
        if which == name:
            apply(document)
        data = canonical_json(document)
        named_by |= {"digest": digest_of(data), "size": len(data)}
        (blobs / digest_of(data)[7:]).write_bytes(data)
    if which == "index":
        apply(index)
    (folder / "index.json").write_bytes(canonical_json(index))


def put(which: str, *path: str | int, value: object) -> Change:
    def apply(document: Any) -> None:
        for step in path[:-1]:
            document = document[step]
        document[path[-1]] = value

    return which, apply


OUTSIDE = "sha256:../../../../secret"


@pytest.mark.parametrize(
    "change",
    [
        put("index", "manifests", 0, "digest", value=OUTSIDE),
        put("index", "manifests", 0, "digest", value="../secret"),
        put("index", "manifests", value=[]),
        put("index", "schemaVersion", value=3),
        put("manifest", "artifactType", value="application/x-other"),
        put("manifest", "layers", value={"digest": "x"}),
        put("manifest", "layers", 0, "digest", value=OUTSIDE),
        put("manifest", "layers", 0, "size", value="1"),
        put("manifest", "layers", 0, "size", value=-1),
        put("manifest", "config", "digest", value=OUTSIDE),
        put("manifest", "layers", value=[]),
        put("config", "format", value="dovetail.dev/bundle.v9"),
        put("config", "surprise", value=1),
        put("config", "header", value=OUTSIDE),
        put("config", "header", value="sha256:" + "0" * 64),
        put("config", "segments", 0, "nodes", value="../../etc/passwd"),
        put("config", "groups", 0, "data", value=OUTSIDE),
        put("config", "groups", 0, "segments", value=[7]),
        put("config", "groups", 0, "segments", value=[]),
        put("config", "segments", 1, "reads", value=["nowhere"]),
        put("config", "segments", 0, "reads", value=["b"]),
        put("config", "segments", 0, "writes", value=["a", "brightness", "more"]),
        put("config", "segments", 2, "writes", value=[]),
        put("config", "tensors", 0, "dtype", value="object"),
        put("config", "tensors", 0, "shape", value=["N", -4]),
        put("config", "tensors", 0, "name", value="x"),
        put("config", "rungs", 0, "cut", value=4),
        put("config", "rungs", 0, "cut", value=1),
        put("config", "rungs", 1, "id", value="cloud"),
        put("config", "image", "input", value="a"),
        put("config", "image", "std", value=[0.0]),
        put("config", "image", "mean", value=[0.0, 0.0]),
        put("config", "affine", "int8", "a", "axis", value=9),
        put("config", "affine", "int8", "a", "axis", value=0),
        put("config", "affine", "int8", "a", "scale", value=[1.0]),
        put("config", "affine", "int8", "a", "scale", value=[0.0] * 4),
        put("config", "affine", "int8", "a", "zero", value=[2**40] * 4),
    ],
    ids=range(37),
)
def test_a_hostile_bundle_is_refused_though_its_digests_are_right(folder, change):
    """Verify that every contradiction and every path is refused when the bundle is opened."""
    (folder.parent / "secret").write_bytes(b"secret")
    rewrite(folder, change)

    with pytest.raises(BundleError):
        Bundle(folder)


def test_a_rewritten_bundle_opens_if_nothing_is_wrong(folder):
    """Verify that the test above refuses for the right reason."""
    rewrite(folder, put("config", "model", "name", value="renamed"))

    assert Bundle(folder).config.model.name == "renamed"


@pytest.mark.parametrize(
    "data", [b"", b"[", b"[]", b"null", b"[" * 100_000, b"\xff\xfe", b'{"manifests":[{}]}']
)
@pytest.mark.parametrize("name", ["index.json", "oci-layout"])
def test_a_document_that_does_not_parse_is_a_typed_error(folder, name, data):
    """Verify truncated, deep and foreign JSON."""
    (folder / name).write_bytes(data)

    with pytest.raises(BundleError, match="is not a bundle"):
        Bundle(folder)


def test_a_layout_that_a_registry_client_copied_still_opens(folder):
    """Verify the annotations that clients add to the index."""
    index = json.loads((folder / "index.json").read_bytes())
    index["manifests"][0]["annotations"] = {"org.opencontainers.image.ref.name": "v1"}
    index["manifests"][0]["artifactType"] = ARTIFACT_TYPE
    del index["mediaType"]
    (folder / "index.json").write_text(json.dumps(index, indent=2))

    Bundle(folder).verify()


def test_what_is_no_bundle_says_how_to_make_one(tmp_path):
    """Verify the messages for an empty folder, a missing one and a file."""
    file = tmp_path / "file"
    file.write_bytes(b"x")

    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(BundleError, match="dovetail partition"):
            Bundle(path)
    with pytest.raises(BundleError):
        Bundle(file)


def leaky(folder: Path, location: str) -> Path:
    """A bundle whose every digest is right and whose weight lies at `location`."""
    path = folder / "leaky"
    tiny = write_tiny_bundle(folder / "donor", side=8, width=4)
    with BundleWriter(path) as writer:
        for digest in tiny.bundle.blobs:
            writer.add(tiny.bundle.read(digest))
        fragment = onnx.GraphProto.FromString(
            tiny.bundle.read(tiny.bundle.config.groups[0].initializers)
        )
        for entry in fragment.initializer[0].external_data:
            if entry.key == "location":
                entry.value = location
        group = tiny.bundle.config.groups[0]
        swapped = group.model_copy(
            update={"initializers": writer.add(fragment.SerializeToString())}
        )
        config = tiny.bundle.config.model_copy(
            update={"groups": (swapped, *tiny.bundle.config.groups[1:])}
        )
        writer.commit(config)
    return path


@pytest.mark.parametrize("where", ["../../../secret", "absolute", "x/../../../../secret"])
def test_a_weight_outside_the_bundle_is_never_read(tmp_path, where):
    """Verify that external data cannot name a path outside the blob folder."""
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(10_000))
    path = leaky(tmp_path, str(secret) if where == "absolute" else where)

    with pytest.raises(BundleError, match="refuses segments 0 to 1"):
        SegmentRuntime(Bundle(path), (1,), last=1)


def test_a_weight_that_links_outside_the_bundle_is_never_read(tmp_path):
    """Verify that a symbolic link is no way out either."""
    path = leaky(tmp_path, "linked")
    (tmp_path / "secret").write_bytes(bytes(10_000))
    (path / "blobs" / "sha256" / "linked").symlink_to(tmp_path / "secret")

    with pytest.raises(BundleError, match="refuses segments 0 to 1"):
        SegmentRuntime(Bundle(path), (1,), last=1)


def test_a_fragment_that_is_no_onnx_is_refused(tiny, tmp_path):
    """Verify the error for a segment that does not load."""
    with BundleWriter(tmp_path / "bad") as writer:
        for digest in tiny.bundle.blobs:
            writer.add(tiny.bundle.read(digest))
        nodes = writer.add(b"\xff not a graph")
        segment = tiny.bundle.config.segments[0].model_copy(update={"nodes": nodes})
        segments = (segment, *tiny.bundle.config.segments[1:])
        writer.commit(tiny.bundle.config.model_copy(update={"segments": segments}))

    with pytest.raises(BundleError, match="ONNX Runtime"):
        SegmentRuntime(Bundle(tmp_path / "bad"), ())


def test_leaving_without_commit_leaves_nothing(tmp_path):
    """Verify that a failed writing removes every byte."""
    with BundleWriter(tmp_path / "b") as writer:
        writer.add(b"blob")
        assert list(tmp_path.iterdir()) != []

    assert list(tmp_path.iterdir()) == []


def test_a_stream_that_breaks_leaves_no_blob(tiny, tmp_path):
    """Verify that half a blob is not committed with the rest."""

    def broken():
        yield b"half"
        raise OSError("the disk went away")

    with BundleWriter(tmp_path / "b") as writer:
        with pytest.raises(OSError, match="disk"):
            writer.add_stream(broken())
        for digest in tiny.bundle.blobs:
            writer.add(tiny.bundle.read(digest))
        writer.commit(tiny.bundle.config)

    files = {file.name for file in (tmp_path / "b").rglob("*") if file.is_file()}
    named = {digest[7:] for digest in Bundle(tmp_path / "b").blobs}
    assert files == named | {Bundle(tmp_path / "b").digest[7:], "index.json", "oci-layout"}


def test_an_old_bundle_is_replaced_and_nothing_else_is(tiny, tmp_path):
    """Verify what may stand where a bundle is written."""
    write_tiny_bundle(tmp_path / "b", side=8, width=4, seed=1)
    replaced = write_tiny_bundle(tmp_path / "b", side=8, width=4)
    assert replaced.bundle.digest == tiny.bundle.digest

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_bytes(b"years of work")
    with pytest.raises(BundleError, match="is not a bundle"):
        BundleWriter(tmp_path / "mine")
    with pytest.raises(BundleError, match="is not a bundle"):
        BundleWriter(tmp_path / "mine" / "thesis.txt")
    (tmp_path / "empty").mkdir()
    write_tiny_bundle(tmp_path / "empty", side=8, width=4)

    assert {one.name for one in tmp_path.iterdir()} == {"b", "mine", "empty"}


def test_a_description_that_contradicts_itself_is_not_written(tiny, tmp_path):
    """Verify that the writer holds itself to what the reader demands."""
    whole = tiny.bundle.config
    config = whole.model_copy(update={"segments": whole.segments[:1], "groups": (), "rungs": ()})

    with BundleWriter(tmp_path / "b") as writer, pytest.raises(BundleError, match="no segment"):
        writer.commit(config)
    assert list(tmp_path.iterdir()) == []


def test_a_draft_leaves_no_trace(tiny, tmp_path):
    """Verify that drafting before committing changes no byte of the result."""
    with BundleWriter(tmp_path / "b") as writer:
        for digest in tiny.bundle.blobs.keys() - {digest_of_config(tiny)}:
            writer.add(tiny.bundle.read(digest))
        draft = writer.draft(tiny.bundle.config.model_copy(update={"rungs": ()}))
        SegmentRuntime(draft, ())
        writer.commit(tiny.bundle.config)

    assert bytes_of(tmp_path / "b") == bytes_of(tiny.bundle.path)


def digest_of_config(tiny: TinyBundle) -> str:
    return digest_of(canonical_json(tiny.bundle.config.model_dump(mode="json", by_alias=True)))


def test_the_layout_is_the_one_oci_describes(tiny):
    """Verify media types and descriptors against the specification's words."""
    index = json.loads((tiny.bundle.path / "index.json").read_bytes())
    [entry] = index["manifests"]
    manifest = json.loads((tiny.bundle.blob_dir / entry["digest"][7:]).read_bytes())

    assert json.loads((tiny.bundle.path / "oci-layout").read_bytes()) == {
        "imageLayoutVersion": "1.0.0"
    }
    assert (index["schemaVersion"], index["mediaType"]) == (2, INDEX_TYPE)
    assert (entry["mediaType"], entry["digest"]) == (MANIFEST_TYPE, tiny.bundle.digest)
    assert (manifest["artifactType"], manifest["config"]["mediaType"]) == (
        ARTIFACT_TYPE,
        CONFIG_TYPE,
    )
    assert manifest["layers"]


def test_the_tensors_that_cross_are_those_read_behind_the_cut(tiny):
    """Verify crossing tensors and outputs made in the cloud, the jump and the early output too."""
    config = tiny.bundle.config

    assert [config.crossing(cut) for cut in range(4)] == [("x",), ("a",), ("a", "b"), ()]
    remote = [[spec.name for spec in config.remote_outputs(cut)] for cut in range(4)]
    assert remote == [["brightness", "scores"], ["scores"], ["scores"], []]


def test_rungs_are_found_by_id(tiny):
    """Verify ids and the error that lists them."""
    config = tiny.bundle.config

    assert config.rung("cut1-int8").codec == "int8"
    assert (rung_id(0, "raw", 3), rung_id(3, "raw", 3)) == ("cloud", "edge")
    assert rung_id(2, "int8-zstd", 3) == "cut2-int8-zstd"
    with pytest.raises(UnknownRung, match="cut1-int8"):
        config.rung("cut9")


def test_weights_shared_by_two_segments_are_stored_once(tiny):
    """Verify that the blobs hold each weight once and no more."""
    config = tiny.bundle.config
    stored = sum(tiny.bundle.blobs[group.data] for group in config.groups)

    assert stored == config.model.weight_bytes


def test_onnx_runtime_itself_guards_external_data(tmp_path):
    """Verify the guard that the bundle's safety rests on, apart from our own code."""
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_bytes(b"SECRETS!")
    tensor = TensorProto(name="w", data_type=TensorProto.UINT8, dims=[8])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    output = helper.make_tensor_value_info("y", TensorProto.UINT8, [8])
    constant = helper.make_node("Constant", [], ["y"], value=tensor)
    graph = helper.make_graph([constant], "g", [], [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = ort.SessionOptions()
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(tmp_path / "in")
    )

    with pytest.raises(Exception, match="escapes model directory"):
        ort.InferenceSession(model.SerializeToString(), options)
    assert np.frombuffer((tmp_path / "secret").read_bytes(), np.uint8).size == 8
