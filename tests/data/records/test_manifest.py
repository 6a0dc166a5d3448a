"""The manifest of a set of records: its checksum, its fields, and sets of earlier versions."""

import json
import math
import pathlib
from typing import Any

import pytest

from jworld.data import records
from jworld.data.records import manifest as manifest_lib
from jworld.utils.errors import UserError

SHARD = {"file": "train-00000-of-00001.arrow", "records": 2}
MANIFEST: dict[str, Any] = {
    "arrays": records.make_arrays((2, 3, 4), prompt=True),
    "autoencoder": {"family": "linear", "hash": "abc", "normalised": True, "temporal_ratio": 4},
    "latent_shape": [2, 3, 4],
    "temporal_ratio": 4,
    "fps": 8.0,
    "image_size": [24, 16],
    "text_encoder": {"family": "hashed-words", "dim": 8},
    "glyph_encoder": {"family": "none", "dim": 0},
    "vision_encoder": {"family": "none", "dim": None},
    "prompts": ["", 'a room with a "checksum": ""'],
    "text": [{"file": "text-00000-of-00001.arrow", "records": 2}],
    "splits": {"train": [SHARD]},
    "clips": {"train": [3, 4]},
    "episodes": {"train": ["a", "b"]},
    "source": "videos",
}


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    records.write_manifest(tmp_path, MANIFEST)
    return tmp_path / records.MANIFEST


def test_what_is_written_is_read(path: pathlib.Path) -> None:
    found = records.read_manifest(path.parent)
    assert found == {"format": records.FORMAT, "version": records.VERSION, **MANIFEST}
    # A manifest that was read is written with the present version and a new checksum.
    records.write_manifest(path.parent, found | {"fps": 9.0, "version": 4})
    assert records.read_manifest(path.parent) == found | {"fps": 9.0}


def test_every_flipped_bit_is_noticed(path: pathlib.Path) -> None:
    content = path.read_bytes()
    for place in range(len(content)):
        for bit in range(8) if place > len(content) - 80 or place < 80 else (place % 8,):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(UserError, match=r"manifest\.json"):
                records.read_manifest(path.parent)
    for damaged in (content[:-1], content + b" ", content.replace(b"\n", b""), content.replace(b"8.0", b"8.00")):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="differs from its checksum"):
            records.read_manifest(path.parent)


def test_a_set_of_an_earlier_version_opens_without_checksum(path: pathlib.Path) -> None:
    path.write_text(json.dumps({"format": records.FORMAT, "version": 4, **MANIFEST}))
    assert records.read_manifest(path.parent)["fps"] == 8.0
    path.write_text(json.dumps({"format": records.FORMAT, "version": records.VERSION, **MANIFEST}))
    with pytest.raises(UserError, match="has no valid checksum"):
        records.read_manifest(path.parent)
    path.write_text(json.dumps({"format": records.FORMAT, "version": 4, **MANIFEST, "checksum": "xxh3-128:0"}))
    with pytest.raises(UserError, match="differs from its checksum"):
        records.read_manifest(path.parent)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("fps", value) for value in (math.nan, math.inf, 0, -8, "8", None, True, 1e9, [8])),
        *(("temporal_ratio", value) for value in (0, -4, 8, 4.0, "4", None, True, 10**30)),
        *(("latent_shape", value) for value in ([], [2, 3], [2, 3, 0], [2, 3, 5], [2, 3, 4.0], [2, 3, 10**9], "234")),
        *(("image_size", value) for value in ([0, 16], [24], [24, 16, 3], [True, 16], {})),
        *(
            ("splits", {"train": [SHARD | {"file": name}]})
            for name in (
                "../train.arrow",
                "/train.arrow",
                "a/b.arrow",
                "a\\b.arrow",
                ".a.arrow",
                "train",
                "",
                3,
                "a\n.arrow",
            )
        ),
        *(("splits", {"train": [SHARD | {"records": count}]}) for count in (0, -1, 2.0, "2", None, 10**12, 1)),
        *(("splits", value) for value in ([], {"train": 3}, {"train": [3]}, {"train": None}, None)),
        ("text", [SHARD | {"file": "../../text.arrow"}]),
        *(("prompts", value) for value in (["", 3], "ab", {}, ["a"], [])),
        *(
            ("clips", value)
            for value in ({"train": [3, 0]}, {"train": [3, -4]}, {"train": [3, 4.5]}, {"train": [3]}, [3])
        ),
        *(("episodes", value) for value in ({"train": ["a", 3]}, {"train": "ab"}, {}, None)),
        *(("arrays", {"latent": value}) for value in ({"dtype": "BF16", "shape": ["F", -2]}, {"dtype": "U4"}, 3, [])),
        *(("text_encoder", value) for value in ([], {"dim": -1}, {"dim": 1.5}, {"dim": 10**9}, None)),
        ("autoencoder", []),
    ],
)
def test_wrong_fields_are_named(tmp_path: pathlib.Path, key: str, value: Any) -> None:
    records.write_manifest(tmp_path, MANIFEST | {key: value})
    with pytest.raises(UserError, match=rf"manifest\.json: '({key}|clips\.train|episodes\.train|text)'"):
        records.read_manifest(tmp_path)
    assert manifest_lib.VERSION == records.VERSION
