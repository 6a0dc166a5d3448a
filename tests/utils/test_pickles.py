"""Pickles that reserve memory, never end, or are something else: refused before anything is loaded."""

import collections
import io
import pathlib
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from jworld.systems.cosmos import t5_pickles
from jworld.utils import limits, pickles
from jworld.utils.errors import UserError

torch = pytest.importorskip("torch")


def doubled(levels: int) -> bytes:
    """Return a dict whose key is a tuple of twice the same tuple, and so on: its hash takes 2**levels steps."""
    pairs = b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86\x94" for i in range(levels))
    return b"\x80\x04})\x94" + pairs + b"Ns."


BAD = {
    "declared bytes": b"\x80\x04\x8e" + struct.pack("<Q", 4 << 30) + b".",
    "declared array of bytes": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
    "declared text": b"\x80\x04\x8d" + struct.pack("<Q", 4 << 30) + b".",
    "declared frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"N.",
    "number of an object": b"\x80\x02Nr" + struct.pack("<I", 1 << 30) + b".",
    "text number of an object": b"Np999999999999\n.",
    "tuples in tuples": doubled(60),
    "absent object": b"\x80\x04]h\x05.",
    "no end": b"\x80\x04]",
    "no mark": b"\x80\x04]e.",
    "nothing": b"",
    "text": b"hello",
    "long number": b"I" + b"9" * 5000 + b"\n.",
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_pickle_is_refused(tmp_path: pathlib.Path, name: str) -> None:
    with pytest.raises(ValueError):
        pickles.check(io.BytesIO(BAD[name]), len(BAD[name]))
    path = tmp_path / "a.pickle"
    path.write_bytes(BAD[name])
    with pytest.raises(UserError, match=r"a\.pickle "):
        t5_pickles.read(path)
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("archive/data.pkl", BAD[name])
        archive.writestr("archive/version", "3\n")
    (tmp_path / "old.pt").write_bytes(BAD[name])
    for file in ("a.pt", "old.pt"):
        with pytest.raises(UserError, match=file):
            pickles.load_torch(tmp_path / file, fix="save it again")


def test_an_archive_that_unpacks_to_more_than_it_holds_is_refused(tmp_path: pathlib.Path) -> None:
    for method, name in ((zipfile.ZIP_DEFLATED, "compressed"), (zipfile.ZIP_STORED, "expected one entry data.pkl")):
        with zipfile.ZipFile(tmp_path / "a.pt", "w", method) as archive:
            archive.writestr("archive/data.pk", bytes(1 << 20))
        with pytest.raises(UserError, match=name):
            pickles.load_torch(tmp_path / "a.pt", fix="save it again")


def test_what_a_pickle_reads_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    content = pickle.dumps(bytes(5000), 3)
    pickles.check(io.BytesIO(content), len(content))
    monkeypatch.setattr(limits, "PICKLE_BYTES", 1000)
    with pytest.raises(ValueError, match="it declares 5,000 bytes, more than it has or may have"):
        pickles.check(io.BytesIO(content), len(content))


@pytest.mark.parametrize("protocol", range(6))
def test_good_pickles_pass(protocol: int) -> None:
    value = {
        "a": [np.ones((3, 4), np.float16), np.zeros(2, ml_dtypes.bfloat16)],
        ("x", 1): {1, 2, frozenset({3})},
        "o": collections.OrderedDict(b=b"bytes" * 100, c="ü" * 300, d=[(1.5, None, True)] * 50),
    }
    content = pickle.dumps(value, protocol)
    stream = io.BytesIO(content + b"more")
    pickles.check(stream, len(content))
    assert stream.read() == b"more"


@pytest.mark.parametrize("old", [False, True])
def test_files_of_torch_pass(tmp_path: pathlib.Path, old: bool) -> None:
    state = {f"layer.{i}": torch.full((3, 2), float(i), dtype=torch.bfloat16) for i in range(20)}
    torch.save({"state_dict": state, "step": 3}, tmp_path / "a.pt", _use_new_zipfile_serialization=not old)
    found = pickles.load_torch(tmp_path / "a.pt", fix="save it again", mmap=True)
    assert found["step"] == 3
    assert all(torch.equal(found["state_dict"][name], tensor) for name, tensor in state.items())


def test_a_file_that_names_a_function_is_refused(tmp_path: pathlib.Path) -> None:
    torch.save({"f": pathlib.Path.cwd}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="it names other objects than tensors, which could execute code"):
        pickles.load_torch(tmp_path / "a.pt", fix="save it again")
