"""Downloaded files: reading slice by slice, and errors in one sentence."""

import json
import pathlib
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
from safetensors.torch import save_file as torch_save_file

from conversion import sources
from jworld.utils.errors import UserError

RNG = np.random.default_rng(0)
ARRAYS = {
    "a.weight": RNG.normal(size=(6, 5)).astype(np.float32),
    "b.kernel": RNG.normal(size=(3, 2, 1, 4, 2)).astype(np.float16),
    "c.steps": np.array(7, np.int64),
    "d.empty": np.zeros((0, 3), np.float32),
}


def write(path: pathlib.Path, header: Any, data: bytes = b"") -> pathlib.Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(shape: Any, begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.fixture
def single(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / sources.WEIGHTS_NAME
    safetensors.numpy.save_file(ARRAYS, path, metadata={"format": "pt"})
    return path


def shards(folder: pathlib.Path, weight_map: dict[str, str], files: dict[str, list[str]]) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file, names in files.items():
        safetensors.numpy.save_file({name: ARRAYS[name] for name in names}, folder / file)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


GOOD_MAP = {"a.weight": "one.safetensors", "b.kernel": "two.safetensors", "c.steps": "two.safetensors"}
GOOD_FILES = {"one.safetensors": ["a.weight"], "two.safetensors": ["b.kernel", "c.steps"]}


def test_a_file_is_listed_and_read_whole(single: pathlib.Path) -> None:
    with sources.open_source(single) as source:
        assert source.files == (single,)
        assert source.config is None
        assert source.tensors == {name: sources.TensorInfo(a.shape, a.dtype) for name, a in ARRAYS.items()}
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(source.read(name), array, strict=True)


@pytest.mark.parametrize(
    "name, index",
    [
        ("a.weight", (slice(2, 4),)),
        ("a.weight", (slice(None), slice(1, 3))),
        ("a.weight", (slice(4, 100), slice(-2, None))),
        ("a.weight", (slice(3, 3), slice(1, 2))),
        ("b.kernel", (slice(1, 3), slice(None), slice(None), slice(1, 4), slice(0, 1))),
        ("c.steps", ()),
        ("d.empty", (slice(0, 2), slice(1, 2))),
    ],
)
def test_slices(single: pathlib.Path, monkeypatch: pytest.MonkeyPatch, name: str, index: sources.Index) -> None:
    monkeypatch.setattr(sources, "_BLOCK", 45)  # two rows of a.weight: several blocks, the last one shorter
    with sources.open_source(single) as source:
        np.testing.assert_array_equal(source.read(name, index), ARRAYS[name][index], strict=True)


def test_slices_with_steps_are_refused(single: pathlib.Path) -> None:
    with sources.open_source(single) as source, pytest.raises(ValueError, match="step 1"):
        source.read("a.weight", (slice(0, 6, 2),))


def test_only_the_selected_rows_are_read(single: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A range of rows is readable without the bytes after it."""
    with sources.open_source(single) as source:
        header = 8 + int.from_bytes(single.read_bytes()[:8], "little")
        order = sorted(json.loads(single.read_bytes()[8:header]).items(), key=lambda item: item[0])
        begin = dict(order)["a.weight"]["data_offsets"][0]
        with single.open("r+b") as file:
            file.truncate(header + begin + 4 * 5 * 4)
        np.testing.assert_array_equal(source.read("a.weight", (slice(2, 4),)), ARRAYS["a.weight"][2:4])
        with pytest.raises(UserError, match="became shorter"):
            source.read("a.weight", (slice(2, 5),))


@pytest.mark.parametrize(
    "theirs, ours",
    [
        (torch.bfloat16, ml_dtypes.bfloat16),
        (torch.float8_e4m3fn, ml_dtypes.float8_e4m3fn),
        (torch.float8_e5m2, ml_dtypes.float8_e5m2),
        (torch.float16, np.float16),
        (torch.float64, np.float64),
        (torch.uint8, np.uint8),
        (torch.bool, np.bool_),
    ],
)
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_dtypes_of_torch(tmp_path: pathlib.Path, theirs: torch.dtype, ours: Any, suffix: str) -> None:
    values = torch.tensor([[0.0, 1.5, -2.0], [4.0, 0.25, 448.0]])
    tensor = values.abs().to(theirs) if theirs in (torch.uint8, torch.bool) else values.to(theirs)
    path = tmp_path / f"x.{suffix}"
    if suffix == "pt":
        torch.save({"x": torch.nn.Parameter(tensor) if tensor.is_floating_point() else tensor}, path)
    else:
        torch_save_file({"x": tensor}, path)
    with sources.open_source(path) as source:
        assert source.tensors == {"x": sources.TensorInfo((2, 3), np.dtype(ours))}
        found = source.read("x", (slice(None), slice(1, 3)))
    assert found.dtype == ours
    np.testing.assert_array_equal(found.astype(np.float32), tensor[:, 1:3].float().numpy())


def test_a_sharded_set(tmp_path: pathlib.Path) -> None:
    index = shards(tmp_path, GOOD_MAP, GOOD_FILES)
    for path in (index, tmp_path):
        with sources.open_source(path) as source:
            assert source.files == (tmp_path / "one.safetensors", tmp_path / "two.safetensors")
            assert source.tensors.keys() == GOOD_MAP.keys()
            for name in GOOD_MAP:
                np.testing.assert_array_equal(source.read(name), ARRAYS[name], strict=True)


def test_shards_may_be_links(tmp_path: pathlib.Path) -> None:
    """Shards are links in the download cache of the Hugging Face hub."""
    shards(tmp_path / "blobs", GOOD_MAP, GOOD_FILES)
    (tmp_path / "snapshot").mkdir()
    for file in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(file)
    with sources.open_source(tmp_path / "snapshot") as source:
        np.testing.assert_array_equal(source.read("a.weight"), ARRAYS["a.weight"])


def test_folders(tmp_path: pathlib.Path) -> None:
    """In a pipeline's folder, transformer/ is found, the usual file name preferred, and config.json read."""
    folder = tmp_path / "transformer"
    folder.mkdir()
    for name in (sources.WEIGHTS_NAME, "diffusion_pytorch_model.fp16.safetensors"):
        safetensors.numpy.save_file(ARRAYS, folder / name)
    (folder / "config.json").write_text('{"hidden_size": 64}')
    with sources.open_source(tmp_path) as source:
        assert source.path == tmp_path
        assert source.files == (folder / sources.WEIGHTS_NAME,)
        assert source.config == {"hidden_size": 64}


@pytest.mark.parametrize("key", [None, "state_dict", "module"])
def test_torch_files(tmp_path: pathlib.Path, key: str | None) -> None:
    tensors = {name: torch.from_numpy(array) for name, array in ARRAYS.items()}
    torch.save(tensors if key is None else {key: tensors, "epoch": 3, "optimizer": {"state": {}}}, tmp_path / "x.pth")
    with sources.open_source(tmp_path) as source:
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(source.read(name), array, strict=True)
        np.testing.assert_array_equal(source.read("a.weight", (slice(1, 3),)), ARRAYS["a.weight"][1:3])


class _Foreign:
    """Class that a restricted unpickler must not instantiate."""


@pytest.mark.parametrize(
    "content, message",
    [
        ({"model": {"a": torch.ones(1)}, "ema": {"a": torch.ones(1)}}, "found 2 of them in 'model', 'ema'"),
        ({"a": torch.ones(1), "lr": 0.1}, "found 0 of them"),
        ([torch.ones(1)], "found 0 of them in list"),
        ({"a": torch.ones(2).to_sparse()}, "tensor 'a' is not dense"),
        ({"a": torch.ones(2), "b": _Foreign()}, "other objects than tensors, which could execute code"),
    ],
)
def test_torch_files_of_other_things(tmp_path: pathlib.Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UserError, match=message):
        sources.open_source(tmp_path / "x.pt")


def test_torch_files_without_torch(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "x.pt")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r'pip install "jworld\[torch\]"'):
        sources.open_source(tmp_path / "x.pt")


def test_torch_files_in_the_old_format(tmp_path: pathlib.Path) -> None:
    torch.save({"a": torch.arange(3.0)}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    with sources.open_source(tmp_path / "x.pt") as source:
        np.testing.assert_array_equal(source.read("a"), [0, 1, 2])


def test_invalid_torch_files(tmp_path: pathlib.Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(UserError, match=r"x\.pt is a web page and not the file itself"):
        sources.open_source(tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(UserError, match=r"is not a \.pt file that may be loaded"):
        sources.open_source(tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    with pytest.raises(UserError, match="git lfs pull"):
        sources.open_source(tmp_path / "x.pt")


F4 = 1 << 40
MALFORMED: dict[str, tuple[bytes | dict[str, Any], bytes, str]] = {
    "header_not_json": (b"{nonsense", b"", "header is not valid JSON"),
    "header_no_object": (b"[1, 2]", b"", "header is not a JSON object"),
    "header_too_deep": (b"[" * 200_000, b"", "header is not valid JSON"),
    "repeated_name": (b'{"a": {}, "a": {}}', b"", "'a' occurs twice"),
    "no_description": ({"a": {"dtype": "F32"}}, b"", "'a' is not described by dtype, shape and data_offsets"),
    "overlap": ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12), "'b' overlaps 'a'"),
    "gap": ({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12), "'b' leaves a gap after 'a'"),
    "gap_at_start": ({"a": entry([1], 4, 8)}, bytes(8), "'a' leaves a gap after the header"),
    "cut_short": ({"a": entry([4], 0, 16)}, bytes(12), "need 16 bytes, the file has 12"),
    "bytes_after": ({"a": entry([1], 0, 4)}, bytes(5), "1 bytes after its last tensor"),
    "shape_misfit": ({"a": entry([3], 0, 8)}, bytes(8), r"'a' of shape \[3\] and dtype F32 needs 12 bytes, but has 8"),
    "huge": ({"a": entry([F4, 4], 0, 16 * F4)}, bytes(16), f"need {16 * F4} bytes, the file has 16"),
    "absurd": ({"a": entry([F4] * 30, 0, 8)}, bytes(8), "expected at most 32 sizes that a file can hold"),
    "absurd_and_empty": ({"a": entry([0, F4, F4], 0, 0)}, b"", "expected at most 32 sizes that a file can hold"),
    "many_axes": ({"a": entry([1] * 33, 0, 4)}, bytes(4), "expected at most 32 sizes"),
    "negative_shape": ({"a": entry([-1, -1], 0, 4)}, bytes(4), r"has the shape \[-1, -1\]"),
    "no_shape": ({"a": entry([True, 1.0], 0, 4)}, bytes(4), "has the shape"),
    "backward_offsets": ({"a": entry([1], 4, 0)}, bytes(4), r"has the data_offsets \[4, 0\]"),
    "negative_offsets": ({"a": entry([1], -4, 0)}, bytes(4), r"has the data_offsets \[-4, 0\]"),
    "dtype": ({"a": entry([8], 0, 4, "F4")}, bytes(4), "unknown dtype 'F4', expected BOOL"),
    "dtype_no_name": ({"a": entry([8], 0, 4, ["F32"])}, bytes(4), r"unknown dtype \['F32'\]"),  # type: ignore[arg-type]
    "terminal_codes": ({"a\x1b[2J": entry([3], 0, 8)}, bytes(8), r"tensor 'a\\x1b\[2J'"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_safetensors(tmp_path: pathlib.Path, case: str) -> None:
    header, data, message = MALFORMED[case]
    path = write(tmp_path / "x.safetensors", header, data)
    with pytest.raises(UserError, match=message) as caught:
        sources.open_source(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert len(text) < len(str(path)) + 300


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty: download or copy it again"),
        (b"1234", "has 4 bytes, too few"),
        ((100).to_bytes(8, "little") + b"{}", "its header would have 100 bytes, the file has 10"),
        ((1 << 62).to_bytes(8, "little") + b"{}", "its header would have"),
        (b"<!DOCTYPE html><html>", "is a web page and not the file itself"),
        (b"no header at all", "not a safetensors file, or incomplete"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "Git LFS pointer.*git lfs pull"),
    ],
)
def test_files_in_other_formats(tmp_path: pathlib.Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        sources.open_source(path)


def test_header_length_is_bounded(tmp_path: pathlib.Path) -> None:
    """A sparse file large enough for the header that it announces."""
    path = tmp_path / "x.safetensors"
    path.write_bytes((200_000_000).to_bytes(8, "little"))
    with path.open("r+b") as file:
        file.truncate(300_000_000)
    with pytest.raises(UserError, match="its header would have 200000000 bytes"):
        sources.open_source(path)


@pytest.mark.parametrize(
    "weight_map, files, message",
    [
        (GOOD_MAP | {"c.steps": "three.safetensors"}, GOOD_FILES, "lists 'three.safetensors', which does not exist"),
        (GOOD_MAP | {"c.steps": "../one.safetensors"}, GOOD_FILES, "'../one.safetensors' outside its folder"),
        (GOOD_MAP | {"c.steps": "x/../../one.safetensors"}, GOOD_FILES, "outside its folder"),
        (GOOD_MAP | {"c.steps": "/etc/passwd"}, GOOD_FILES, "'/etc/passwd' outside its folder"),
        (GOOD_MAP | {"c.steps": "x" * 5000}, GOOD_FILES, "which does not exist"),
        (GOOD_MAP | {"c.steps": "\0"}, GOOD_FILES, "outside its folder"),
        (GOOD_MAP | {"b.kernel": "one.safetensors"}, GOOD_FILES, "their shards lack: 'b.kernel'"),
        (GOOD_MAP | {"e.more": "one.safetensors"}, GOOD_FILES, "their shards lack: 'e.more'"),
        (
            GOOD_MAP,
            {"one.safetensors": ["a.weight", "c.steps"], "two.safetensors": ["b.kernel", "c.steps"]},
            "'c.steps' is in two shards, 'one.safetensors', 'two.safetensors'",
        ),
        (
            {"a.weight": "one.safetensors", "b.kernel": "two.safetensors"},
            GOOD_FILES,
            "does not list tensors of its shards: 'c.steps'",
        ),
        ({}, GOOD_FILES, "expected weight_map"),
        ({"a.weight": 3}, GOOD_FILES, "expected weight_map"),
    ],
)
def test_malformed_indexes(
    tmp_path: pathlib.Path, weight_map: dict[str, Any], files: dict[str, list[str]], message: str
) -> None:
    index = shards(tmp_path / "set", weight_map, files)
    with pytest.raises(UserError, match=message) as caught:
        sources.open_source(index)
    assert len(str(caught.value)) < len(str(index)) + 300


def test_index_that_is_not_json(tmp_path: pathlib.Path) -> None:
    index = shards(tmp_path, GOOD_MAP, GOOD_FILES)
    for content, message in (
        (b"[]", "holds a list"),
        (b"\xff\xfe{", "download it again"),
        (b"version https://git-lfs", "LFS"),
    ):
        index.write_bytes(content)
        with pytest.raises(UserError, match=message):
            sources.open_source(tmp_path)


def test_nothing_to_read_or_too_much(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        sources.open_source(tmp_path / "absent")
    with pytest.raises(UserError, match="no weights in this folder"):
        sources.open_source(tmp_path)
    (tmp_path / "x.ckpt").write_bytes(b"x")
    with pytest.raises(UserError, match="not a file of weights by its name"):
        sources.open_source(tmp_path / "x.ckpt")
    for name in ("one.safetensors", "two.safetensors"):
        safetensors.numpy.save_file(ARRAYS, tmp_path / name)
    with pytest.raises(UserError, match=r"has 2 files of weights \('one.safetensors', 'two.safetensors'\)"):
        sources.open_source(tmp_path)


def test_config_that_is_not_json(single: pathlib.Path) -> None:
    (single.parent / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not valid JSON"):
        sources.open_source(single)
