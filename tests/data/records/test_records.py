"""Record payloads, shards and manifests: round trips, and errors that name each malformed case."""

import json
import os
import pathlib
import pickle
import struct

import ml_dtypes
import numpy as np
import pytest

from jworld.data import images, records
from jworld.data.records import shard_files
from jworld.utils.errors import UserError

LATENT = (2, 3, 4)


def make_record(seed: int, frames: int = 5) -> records.Record:
    generator = np.random.default_rng(seed)
    latent = generator.normal(size=(frames, *LATENT)).astype(ml_dtypes.bfloat16)
    return {
        "latent": latent,
        "image_cond": latent[:1],
        "w2c": np.tile(np.eye(4, dtype=np.float32), (frames, 1, 1)),
        "intrinsics": np.tile(np.eye(3, dtype=np.float32), (frames, 1, 1)),
        "action": generator.integers(0, 81, frames).astype(np.int32),
        "vision_states": generator.normal(size=(12, 12)).astype(ml_dtypes.bfloat16),
        "prompt": np.array(1, np.int32),
    }


def make_manifest(shards: list[dict], clips: list[int]) -> dict:
    return {
        "arrays": records.make_arrays(LATENT, cameras=True, action=True, vision=(12, 12), prompt=True),
        "autoencoder": {"family": "linear", "hash": "abc", "normalised": True},
        "latent_shape": list(LATENT),
        "temporal_ratio": 4,
        "fps": 8.0,
        "camera_convention": "opencv_w2c",
        "image_size": [24, 16],
        "text_encoder": {"family": "hashed-words", "dim": 8},
        "glyph_encoder": {"family": "none", "dim": 0},
        "vision_encoder": {"family": "thumbnail", "tokens": 12, "dim": 12},
        "prompts": ["", "a room"],
        "text": [{"file": "text-00000-of-00001.arrow", "records": 2}],
        "splits": {"train": shards},
        "clips": {"train": clips},
        "episodes": {"train": [f"episode_{i}" for i in range(len(clips))]},
    }


def write_set(directory, rows: list[records.Record], *, shard_bytes: int = 1 << 30) -> dict:
    with records.RecordWriter(directory, "train", shard_bytes=shard_bytes) as writer:
        for row in rows:
            writer.write(row)
    manifest = make_manifest(writer.shards, [len(row["latent"]) for row in rows])
    records.write_manifest(directory, manifest)
    return manifest


def test_payload_round_trip():
    record = {**make_record(0), "empty": np.zeros((0, 7), np.float32), "flag": np.array([True, False])}
    decoded = records.decode_record(records.encode_record(record))
    assert decoded.keys() == record.keys()
    for name, array in record.items():
        assert decoded[name].dtype == array.dtype
        np.testing.assert_array_equal(decoded[name], array)


def payload(header, data: bytes) -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


def entry(**changes) -> dict:
    return {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


@pytest.mark.parametrize(
    "raw, message",
    [
        (b"abc", "3 bytes"),
        (struct.pack("<Q", 1 << 60) + b"{}", "header length"),
        (payload(b"{nonsense", b""), "not JSON"),
        (payload([1], b""), "not a JSON object"),
        (payload({"x": 3}, b""), "data_offsets"),
        (payload(entry(data_offsets=[0]), bytes(8)), "data_offsets"),
        (payload(entry(dtype="F33"), bytes(8)), "unknown dtype 'F33'"),
        (payload(entry(shape=[-2]), bytes(8)), "shape"),
        (payload(entry(shape=[2.0]), bytes(8)), "shape"),
        (payload(entry(shape=[1 << 62, 1 << 62]), bytes(8)), "bytes lies at"),
        (payload(entry(data_offsets=[4, 12]), bytes(12)), "lies at 4"),
        (payload(entry(data_offsets=[-8, 0]), bytes(8)), "lies at -8"),
        (payload(entry(), bytes(7)), "of 7"),
        (payload(entry(), bytes(9)), "end at byte 8 of 9"),
    ],
)
def test_malformed_payloads(raw, message):
    with pytest.raises(ValueError, match=message):
        records.decode_record(raw)


def test_unknown_dtype_is_not_written():
    with pytest.raises(ValueError, match="'z' has dtype complex128"):
        records.encode_record({"z": np.zeros(2, complex)})


def test_records_have_the_arrays_of_the_manifest(tmp_path):
    row = make_record(0)
    names = ("latent", "image_cond", "prompt")
    write_set(tmp_path, [{name: row[name] for name in names}])
    with pytest.raises(UserError, match="key 'w2c' is missing"):
        records.RecordSource(tmp_path, "train")[0]
    manifest = make_manifest([{"file": "train-00000-of-00001.arrow", "records": 1}], [5])
    records.write_manifest(tmp_path, manifest | {"arrays": records.make_arrays(LATENT, prompt=True)})
    assert records.RecordSource(tmp_path, "train")[0].keys() == {*names, "index"}
    records.write_manifest(tmp_path, manifest | {"arrays": records.make_arrays(LATENT), "prompts": [], "text": []})
    assert records.RecordSource(tmp_path, "train")[0].keys() == {"latent", "image_cond", "index"}


def test_source_reads_all_shards_in_order(tmp_path):
    rows = [make_record(i, frames=4 + i) for i in range(5)]
    manifest = write_set(tmp_path, rows, shard_bytes=2 * len(records.encode_record(rows[0])) + 200)
    files = [shard["file"] for shard in manifest["splits"]["train"]]
    assert files == [f"train-{i:05d}-of-{len(files):05d}.arrow" for i in range(len(files))]
    assert len(files) > 1
    assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob(".*"))  # noqa: PT018
    source = records.RecordSource(tmp_path, "train")
    assert len(source) == 5
    for i in (4, 0, 2, 1, 3):
        assert source[i]["index"] == i
        for name, array in rows[i].items():
            np.testing.assert_array_equal(source[i][name], array)


def test_a_source_can_be_pickled(tmp_path):
    rows = [make_record(i) for i in range(3)]
    write_set(tmp_path, rows, shard_bytes=1)
    source = records.RecordSource(tmp_path, "train")
    assert source[1]["index"] == 1
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[2]["latent"], rows[2]["latent"])


@pytest.mark.skipif(not pathlib.Path("/proc/self/fd").exists(), reason="counts open files in /proc")
def test_few_of_many_shards_are_open(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_files, "MAX_OPEN_SHARDS", 3)
    rows = [make_record(i) for i in range(20)]
    manifest = write_set(tmp_path, rows, shard_bytes=1)
    assert len(manifest["splits"]["train"]) == 20
    before = len(os.listdir("/proc/self/fd"))
    source = records.RecordSource(tmp_path, "train")
    for i in np.random.default_rng(0).permutation(20):
        np.testing.assert_array_equal(source[i]["latent"], rows[i]["latent"])
    assert len(os.listdir("/proc/self/fd")) - before == 3


def test_failed_writer_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="dtype"):
        write_set(tmp_path, [make_record(0), {"latent": np.zeros(2, complex)}])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change, message",
    [
        ({"latent": None}, "record 1 .episode_1.: key 'latent' is missing"),
        ({"action": np.zeros(3, np.int32)}, r"'action' is int32 \[3\], expected int32 \[5\]"),
        ({"w2c": np.zeros((5, 4, 4))}, "'w2c' is float64"),
        ({"prompt": np.array(2, np.int32)}, "prompt 2 is not in the text store"),
    ],
)
def test_wrong_records_are_named(tmp_path, change, message):
    wrong = {name: array for name, array in (make_record(1) | change).items() if array is not None}
    directory = tmp_path
    with records.RecordWriter(directory, "train") as writer:
        writer.write(make_record(0))
        writer.write(wrong)
    records.write_manifest(directory, make_manifest(writer.shards, [5, 5]))
    source = records.RecordSource(directory, "train")
    assert source[0]["index"] == 0
    with pytest.raises(UserError, match=r"train-00000-of-00001\.arrow.*" + message):
        source[1]


def test_corrupt_shards(tmp_path):
    write_set(tmp_path, [make_record(i) for i in range(3)])
    path = tmp_path / "train-00000-of-00001.arrow"
    good = path.read_bytes()
    # Inside the second record: every record has its own checksum.
    damaged = bytearray(good)
    damaged[good.index(records.encode_record(make_record(1))) + 500] ^= 0xFF
    path.write_bytes(damaged)
    source = records.RecordSource(tmp_path, "train")
    assert source[0]["index"] == 0
    with pytest.raises(UserError, match=r"record 1 \(episode_1\) is corrupt"):
        source[1]
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(UserError, match=r"train-00000-of-00001\.arrow holds"):
        records.RecordSource(tmp_path, "train")
    path.unlink()
    with pytest.raises(UserError, match="absent"):
        records.RecordSource(tmp_path, "train")


def test_short_clips_are_refused_at_opening(tmp_path):
    write_set(tmp_path, [make_record(0, frames=8), make_record(1, frames=5)])
    assert len(records.RecordSource(tmp_path, "train", min_frames=5)) == 2
    with pytest.raises(UserError, match=r"'episode_1' .*record 1\) has 5 latent frames, the model needs 8 \(1 of 2"):
        records.RecordSource(tmp_path, "train", min_frames=8)
    with pytest.raises(UserError, match="split 'val' has no records"):
        records.RecordSource(tmp_path, "val")


def test_manifest_refusals(tmp_path):
    with pytest.raises(UserError, match="is absent"):
        records.read_manifest(tmp_path)
    manifest = write_set(tmp_path, [make_record(0)])
    path = tmp_path / records.MANIFEST
    for change, message in (
        ({"format": "other"}, "format is 'other'"),
        ({"version": 9}, "version is 9"),
        ({"latent_shape": None}, "'latent_shape'"),
        ({"text": None}, "'text' is None"),
        ({"prompts": ["", "a room", "a hall"]}, "'text' does not hold the 3 prompts"),
        ({"prompts": [], "text": []}, r"'prompts' is \[\], expected at least"),
        ({"prompts": [], "arrays": records.make_arrays(LATENT)}, "'text' does not hold the 0 prompts"),
        (
            {"arrays": {"latent": {"dtype": "BF16", "shape": ["T", 3]}}},
            r"'arrays' is .*, expected a valid dtype and shape",
        ),
        ({"clips": {"train": [5, 5]}}, "'clips.train' does not list the 1 records"),
    ):
        path.write_text(json.dumps({"format": records.FORMAT, "version": 4, **manifest, **change}))
        with pytest.raises(UserError, match=message):
            records.read_manifest(tmp_path)
    path.write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        records.read_manifest(tmp_path)


def test_manifest_of_another_model(tmp_path):
    manifest = make_manifest([], [])
    records.check_manifest(manifest, {"autoencoder.hash": "abc", "latent_shape": LATENT}, path=tmp_path)
    for expected, message in (
        ({"autoencoder.hash": "def"}, r"'autoencoder\.hash' is 'abc', the model expects 'def': make the data set"),
        ({"latent_shape": (2, 3, 8)}, r"'latent_shape' is \[2, 3, 4\], the model expects \[2, 3, 8\]"),
        ({"text_encoder.dim": 64}, r"'text_encoder\.dim' is 8"),
        ({"text_encoder.absent": 64}, "is None"),
    ):
        with pytest.raises(UserError, match=message):
            records.check_manifest(manifest, expected, path=tmp_path)
    for lacking, other in ((["w2c", "action"], {}), (["camera"], {"latent_shape": (9, 9, 9)})):
        with pytest.raises(UserError, match=f"has no {', '.join(lacking)}, which the model needs: .*episodes or"):
            records.check_manifest(
                manifest | {"arrays": records.make_arrays(LATENT)}, {"arrays": lacking, **other}, path=tmp_path
            )
    records.check_manifest(manifest, {"arrays": ["w2c", "action"]}, path=tmp_path)
    del manifest["camera_convention"]
    with pytest.raises(UserError, match=r"'camera_convention' is None, the model expects 'opencv_w2c'"):
        records.check_manifest(manifest, {}, path=tmp_path)
    records.check_manifest(manifest | {"arrays": records.make_arrays(LATENT)}, {}, path=tmp_path)
    manifest = make_manifest([], [])
    manifest["autoencoder"]["normalised"] = False
    with pytest.raises(UserError, match=r"autoencoder\.normalised"):
        records.check_manifest(manifest, {}, path=tmp_path)


def test_a_full_disk_is_reported_in_one_sentence():
    file = shard_files.RecordFile(pathlib.Path("/dev/full"))
    with pytest.raises(UserError, match="/dev/full could not be written completely: is the disk full"):
        file.write(bytes(1000))
    with pytest.raises(UserError, match="is the disk full"):
        file.close()


def test_resize_is_the_block_mean():
    frames = np.random.default_rng(0).integers(0, 256, (2, 12, 16, 3)).astype(np.uint8)
    means = frames.reshape(2, 3, 4, 4, 4, 3).mean(axis=(2, 4))
    resized = images.resize(frames, width=4, height=3)
    assert resized.dtype == np.uint8
    assert np.abs(resized - means).max() <= 0.5
    assert images.resize(frames, width=16, height=12) is frames
    assert images.resize(frames, width=5, height=7).shape == (2, 7, 5, 3)


def test_thumbnail_tokens():
    image = np.zeros((60, 80, 3), np.uint8)
    image[:20, 20:40] = (255, 0, 255)
    tokens = images.thumbnail_tokens(image)
    assert tokens.shape == (images.THUMBNAIL_TOKENS, images.THUMBNAIL_DIM)
    np.testing.assert_allclose(tokens[1].reshape(4, 3), [[1, -1, 1]] * 4, atol=1e-6)
    np.testing.assert_allclose(np.delete(tokens, 1, axis=0), -1)
    assert images.thumbnail_tokens(image[:5, :3]).shape == (12, 12)
