"""ArrayRecord and TFRecord files: their records, places, and damage; checksums against known values."""

import os
import pathlib
import pickle
import struct

import array_record_sets
import numpy as np
import pytest

from jworld.data import examples, record_files
from jworld.utils import array_pickles, crc32c, limits
from jworld.utils.errors import UserError

RECORDS = [b"", b"one", bytes(range(256)) * 20, np.random.default_rng(0).bytes(70_000)]
NAMES = ("x.array_record", "x.array_record-00000-of-00002", "x.tfrecord-00000-of-00001")


@pytest.mark.parametrize("name", NAMES)
def test_records_come_back_in_order_and_by_their_places(tmp_path: pathlib.Path, name: str) -> None:
    path = array_record_sets.write_records(tmp_path / name, RECORDS)
    found = list(record_files.records(path))
    assert [content for _, content in found] == RECORDS
    assert [record_files.record(path, place) for place, _ in reversed(found)] == RECORDS[::-1]
    if "array" in name:
        assert record_files.count(path) == 4


@pytest.mark.parametrize("name", NAMES[1:])
def test_a_changed_byte_is_noticed(tmp_path: pathlib.Path, name: str) -> None:
    path = array_record_sets.write_records(tmp_path / name, RECORDS[1:])
    content = path.read_bytes()
    place = content.index(RECORDS[3][1000:1010])
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(UserError, match=rf"{name} is not a readable file of records \(.*(hash|checksum)"):
        list(record_files.records(path))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"\x01\x00", "it ends within a record"),
        (struct.pack("<QI", 5, 0) + b"hello" + bytes(4), "the checksum of the length at byte 0 does not match"),
        (None, "more than it has or may have"),
    ],
)
def test_damaged_frames(tmp_path: pathlib.Path, content: bytes | None, message: str) -> None:
    length = struct.pack("<Q", 1 << 62)
    path = tmp_path / "x.tfrecord"
    path.write_bytes(length + struct.pack("<I", crc32c.masked(length)) if content is None else content)
    with pytest.raises(UserError, match=message):
        list(record_files.records(path))


def test_other_files(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"is neither an \.array_record nor a \.tfrecord file by its name"):
        list(record_files.records(tmp_path / "x.bin"))
    for name in ("a.tfrecord", "a.array_record"):
        with pytest.raises(UserError, match="is absent: download or write it again"):
            list(record_files.records(tmp_path / name))
        os.mkfifo(tmp_path / name)
        with pytest.raises(UserError, match="is a pipe, a socket or a device"):
            list(record_files.records(tmp_path / name))
    path = array_record_sets.write_records(tmp_path / "b.array_record", RECORDS)
    monkeypatch.setattr(limits, "RECORDS", 3)
    with pytest.raises(UserError, match="it has 4 records, expected 1 to 3"):
        record_files.count(path)


def test_checksums() -> None:
    # Values of RFC 3720, B.4.
    assert crc32c.crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c.crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c.crc32c(b"123456789") == 0xE3069283
    # Rows and the rest give what bytes alone give.
    content, state = RECORDS[3], 0xFFFFFFFF
    for byte in content:
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ (0x82F63B78 if state & 1 else 0)
    assert crc32c.crc32c(content) == state ^ 0xFFFFFFFF


def test_lists_of_an_example() -> None:
    values = {"a": [b"x", b"\xc3\xa4"], "b": np.array([1.5, -2]), "c": np.array([-1, 1 << 62]), "d": []}
    found = examples.Example(array_record_sets.example(values))
    assert found.images("a") == values["a"]
    assert found.texts("a") == ["x", "ä"]
    assert found.texts("missing") == []
    assert found.count_images("d") == 0
    np.testing.assert_array_equal(found.numbers("b"), [1.5, -2])
    np.testing.assert_array_equal(found.numbers("c"), [-1, 1 << 62])
    with pytest.raises(ValueError, match="'missing' is absent, expected a bytes_list"):
        found.images("missing")
    with pytest.raises(ValueError, match="'b' is float_list, expected a bytes_list"):
        found.texts("b")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickled_arrays(protocol: int) -> None:
    if protocol == 2:
        # Bytes of this protocol are texts that a function encodes.
        with pytest.raises(ValueError, match=r"_codecs\.encode, which no array needs"):
            array_pickles.load(pickle.dumps(np.arange(3), protocol))
        return
    for array in (np.arange(6).reshape(2, 3), np.asfortranarray(np.eye(3, dtype=np.float32)), np.zeros(0, np.uint8)):
        stored = array_pickles.load(pickle.dumps({"x": [array]}, protocol))["x"][0]
        np.testing.assert_array_equal(stored.to_numpy(), array)
        assert stored.to_numpy().dtype == array.dtype


@pytest.mark.parametrize(
    "array, message",
    [
        (np.array(["text"]), "its array is of type 'U4'"),
        (np.array([{}]), "its array is of type 'O8'"),
        (np.zeros(2, ">i4"), "its array is of type 'i4'"),
        (np.zeros(2, [("a", "i4")]), "its array is of type 'V4'"),
    ],
)
def test_pickled_arrays_of_other_types(array: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        array_pickles.load(pickle.dumps(array)).to_numpy()
