"""Identity of a data set: equal for copies, different for any other content."""

import json
import pathlib
import shutil

import test_records

from jworld.data import records
from jworld.data.records import content


def identity(folder: pathlib.Path) -> str:
    return content.of_records(folder, records.read_manifest(folder))


def write(folder: pathlib.Path, seeds: range) -> pathlib.Path:
    folder.mkdir()
    test_records.write_set(folder, [test_records.make_record(seed) for seed in seeds], shard_bytes=3000)
    with records.RecordWriter(folder, "text") as writer:
        for _ in range(2):
            writer.write(test_records.make_record(0))
    return folder


def test_a_copy_has_the_same_identity(tmp_path: pathlib.Path) -> None:
    first = write(tmp_path / "first", range(6))
    shutil.copytree(first, tmp_path / "copy")
    assert identity(first) == identity(tmp_path / "copy")
    manifest = records.read_manifest(first)
    records.write_manifest(tmp_path / "copy", manifest | {"request": {"input": "/elsewhere"}})
    assert identity(first) == identity(tmp_path / "copy")


def test_other_records_of_the_same_number_have_another(tmp_path: pathlib.Path) -> None:
    first, second = write(tmp_path / "first", range(6)), write(tmp_path / "second", range(1, 7))
    assert json.loads((first / "manifest.json").read_text()) == json.loads((second / "manifest.json").read_text())
    assert identity(first) != identity(second)


def test_another_prompt_is_another_set(tmp_path: pathlib.Path) -> None:
    first = write(tmp_path / "first", range(6))
    before = identity(first)
    records.write_manifest(first, records.read_manifest(first) | {"prompts": ["", "a garden"]})
    assert identity(first) != before
