"""Wrong paths and files: each kind makes one at a given place, from the valid file or folder if it needs one."""

import contextlib
import json
import os
import pathlib
import pickle
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping

#: Part of every wrong path, which an error must name.
MARK = "wrong"

Make = Callable[[pathlib.Path, pathlib.Path | None], pathlib.Path]
#: A file that can be opened, and whose first read fails, as on a failing disk.
_UNREADABLE = "/proc/self/mem"


def _path_only(rename: Callable[[pathlib.Path], pathlib.Path]) -> Make:
    return lambda path, valid: rename(path)


def _content(content: bytes) -> Make:
    def make(path: pathlib.Path, valid: pathlib.Path | None) -> pathlib.Path:
        path.write_bytes(content)
        return path

    return make


def _link(target: str | None) -> Make:
    """Make a link to `target`, or to itself."""

    def make(path: pathlib.Path, valid: pathlib.Path | None) -> pathlib.Path:
        path.symlink_to(path.name if target is None else target)
        return path

    return make


def _named_pipe(path: pathlib.Path, valid: pathlib.Path | None) -> pathlib.Path:
    """Make a pipe that nobody writes to: a program that opens it waits for ever."""
    os.mkfifo(path)
    return path


def _socket(path: pathlib.Path, valid: pathlib.Path | None) -> pathlib.Path:
    # The address of a socket is short, so it is given within its folder.
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    return path


def _folder(path: pathlib.Path, valid: pathlib.Path | None) -> pathlib.Path:
    path.mkdir()
    return path


def _in_a_file(path: pathlib.Path, valid: pathlib.Path | None) -> pathlib.Path:
    path.write_text("a file")
    return path / path.name


def _half(path: pathlib.Path, valid: pathlib.Path | None) -> pathlib.Path:
    content = b"" if valid is None else valid.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int) -> bytes:
    """Return the beginning of an image that declares a size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(b"\0" * 99))


def safetensors(header: object, data: int = 0, *, length: int | None = None) -> bytes:
    """Return a file with this header, or one that declares another length of it."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(data)


def _archive(size: int) -> Make:
    """Make a zip archive, as torch.save does, whose pickle unpacks to `size` zeros."""

    def make(path: pathlib.Path, valid: pathlib.Path | None) -> pathlib.Path:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", bytes(size))
            archive.writestr("archive/version", "3\n")
        return path

    return make


_HUGE = {"w": {"dtype": "F32", "shape": [1 << 40, 1 << 12], "data_offsets": [0, 1 << 54]}}
#: Kinds for every place of a file or folder.
PATHS: Mapping[str, Make] = {
    "absent": _path_only(lambda path: path),
    "absent folder": _path_only(lambda path: path.with_name("none") / path.name),
    "name with blanks": _path_only(lambda path: path.with_name(f" a  b {path.name}")),
    "name with a newline": _path_only(lambda path: path.with_name(f"a\nb{path.name}")),
    "name with letters of all kinds": _path_only(lambda path: path.with_name(f"ü語🙂\u202e[red]{{}}%s{path.name}")),
    "name that is not UTF-8": _path_only(lambda path: path.with_name(os.fsdecode(b"\xff\xfe") + path.name)),
    "long name": _path_only(lambda path: path.with_name("x" * 300 + path.name)),
    "loop of links": _link(None),
    "link to nothing": _link("/nowhere/at/all"),
    "below a file": _in_a_file,
}
#: Kinds for a file.
FILES: Mapping[str, Make] = {
    **PATHS,
    "folder": _folder,
    "empty": _content(b""),
    "unreadable": _link(_UNREADABLE),
    "without an end": _link("/dev/zero"),
    "named pipe": _named_pipe,
    "socket": _socket,
    "half": _half,
    "text": _content(b"hello, this is not it\n"),
    "zeros": _content(bytes(4096)),
    "Latin-1": _content('{"caption": "caf\u00e9 \u00fc"}'.encode("latin-1")),
    "UTF-16": _content('{"caption": "hello"}'.encode("utf-16")),
    "image": _content(png(4, 4)),
    "pickle": _content(pickle.dumps({"a": [1, 2]})),
}
#: Further kinds by the suffix of the valid file.
BY_SUFFIX: Mapping[str, Mapping[str, Make]] = {
    ".json": {
        "nested": _content(b"[" * 200_000),
        "nested objects": _content(b'{"a":' * 100_000),
        "null": _content(b"null"),
        "number": _content(b"17"),
        "text in quotes": _content(b'"hello"'),
        "list": _content(b"[1, 2]"),
        "list of lists": _content(b"[[[]], {}]"),
        "empty object": _content(b"{}"),
        "other object": _content(b'{"version": {"a": null}, "data": [], "system": 7}'),
        "long number": _content(b"1" * 5000),
        "infinite number": _content(b'{"a": 1e999}'),
    },
    ".jsonl": {
        "nested": _content(b"[" * 200_000),
        "nested line": _content(b'{"a":' * 100_000 + b"\n"),
        "null": _content(b"null\n"),
        "number": _content(b"17\n"),
        "empty object": _content(b"{}\n"),
        "long number": _content(b'{"prompt": ' + b"1" * 5000 + b"}"),
    },
    ".safetensors": {
        "declared header": _content(safetensors({}, length=1 << 62)),
        "header of 90 MB": _content(safetensors({}, length=90_000_000)),
        "declared tensor": _content(safetensors(_HUGE)),
        "no tensors": _content(safetensors({})),
        "header that is a list": _content(safetensors([1])),
        "nested header": _content(struct.pack("<Q", 100_000) + b"[" * 100_000),
        "other tensors": _content(safetensors({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, 8)),
    },
    ".png": {
        "900 megapixels": _content(png(30_000, 30_000)),
        "declared size": _content(png(2**31 - 1, 2**31 - 1)),
        "one damaged chunk": _content(png(4, 4)[:40] + b"\xff\xff\xff\xffIDAT"),
    },
    ".pt": {"bomb": _archive(1 << 28), "archive of text": _archive(100)},
    ".pickle": {
        "declared bytes": _content(b"\x80\x04\x8e" + struct.pack("<Q", 4 << 30) + b"."),
        "declared text": _content(b"\x8d" + struct.pack("<Q", 4 << 30)),
        "calls": _content(b"cos\nsystem\n(S'true'\ntR."),
    },
    ".py": {
        "syntax error": _content(b"def get_config(:\n"),
        "error in the file": _content(b"raise RuntimeError('broken')\n"),
        "absent module": _content(b"import not_there\n"),
        "no function": _content(b"x = 1\n"),
        "function that fails": _content(b"def get_config(variant=''):\n    return {}['a']\n"),
        "no config": _content(b"def get_config(variant=''):\n    return 3\n"),
        "a number for the function": _content(b"get_config = 3\n"),
        "exit": _content(b"import sys\nsys.exit(3)\n"),
        "no arguments": _content(b"def get_config():\n    return {}\n"),
        "NUL": _content(b"x = 1\n\0\n"),
    },
    ".mp4": {},
    ".arrow": {},
    ".parquet": {"magic": _content(b"PAR1" + bytes(100) + struct.pack("<I", 1 << 31 - 1) + b"PAR1")},
    ".tar": {},
    ".txt": {},
}
#: Kinds for a folder.
FOLDERS: Mapping[str, Make] = {
    **PATHS,
    "empty folder": _folder,
    "file": _content(b"a file"),
    "image": _content(png(4, 4)),
    "unreadable": _link(_UNREADABLE),
    "without an end": _link("/dev/zero"),
    "named pipe": _named_pipe,
}
#: Kinds for a file to write.
OUTPUT_FILES: Mapping[str, Make] = {
    "folder": _folder,
    "below a file": _in_a_file,
    "loop of links": _link(None),
    "long name": PATHS["long name"],
    "no room for the name of a temporary file": lambda path, valid: path.with_name(f"{'x' * 235}{path.name}"),
    "named pipe": _named_pipe,
    "socket": _socket,
    "device": _link("/dev/full"),
    "no place to write": lambda path, valid: pathlib.Path("/proc") / MARK / path.name,
}
#: Kinds for the name of a repository to upload to.
REPOSITORIES: Mapping[str, Make] = {
    name: lambda path, valid, text=text: pathlib.Path(text)
    for name, text in {
        "three parts": f"a/b/{MARK}",
        "absolute": f"/{MARK}/b",
        "address": f"gs:/{MARK}",
        "blanks": f"a b/{MARK}",
        "newline": f"a\nb/{MARK}",
        "other letters": f"\u8a9e/{MARK}",
        "parent": f"../{MARK}",
        "begins with a dash": f"-{MARK}/b",
        "two dots": f"a/{MARK}..b",
        "suffix of a repository": f"a/{MARK}.git",
        "long": f"a/{MARK}{'x' * 96}",
    }.items()
}
#: Kinds for a folder to write to.
OUTPUT_FOLDERS: Mapping[str, Make] = {
    "file": _content(b"a file"),
    **{
        name: OUTPUT_FILES[name]
        for name in ("below a file", "loop of links", "long name", "socket", "no place to write")
    },
}
TABLES: Mapping[str, Mapping[str, Make]] = {
    "file": FILES,
    "folder": FOLDERS,
    "output file": OUTPUT_FILES,
    "output folder": OUTPUT_FOLDERS,
    "repository": REPOSITORIES,
}


def kinds(table: str, suffix: str) -> dict[str, Make]:
    """Return the kinds of a table, for files with those of a suffix."""
    return {**TABLES[table], **(BY_SUFFIX.get(suffix, {}) if table == "file" else {})}
