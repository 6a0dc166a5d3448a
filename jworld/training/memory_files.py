"""Files of emergency checkpoints: what the devices of one process hold, in a folder in the host's memory.

`<folder>/<run>/<item>/<seat>.shards`: the item is a step or "frozen", and the seat the process's place in the mesh. A
file has the distinct shards of the process, then a JSON record, then a footer with the record's length and checksum.
It gets its name when it is complete. Copies for other processes have the same names.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import secrets
import shutil
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jworld.parallel import mesh
from jworld.training import checksums

FROZEN = "frozen"
_SUFFIX, _PLACE = ".shards", "place"
#: Magic, bytes of the record, CRC-32 of the record.
_FOOTER = struct.Struct("<8sQI")
_MAGIC = b"jwshards"
_ALIGNMENT, _BLOCK = 64, 1 << 24
_NOTHING = np.empty(0, np.uint8)
#: Bytes on their way from the devices while others are written.
_IN_FLIGHT = 256 << 20


class DamagedError(Exception):
    """A file whose content differs from what was written, or that belongs to something else."""


def _size(spans: mesh.Spans, dtype: Any) -> int:
    return math.prod(stop - start for start, stop in spans) * int(np.dtype(dtype).itemsize)


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def tree_bytes(tree: Any) -> int:
    """Return the bytes of a file of this process's shards of a tree, without its record."""
    return sum(
        _padded(_size(spans, leaf.dtype))
        for leaf in jax.tree.leaves(tree)
        for spans in mesh.local_shards(leaf.shape, leaf.sharding)
    )


@dataclasses.dataclass(frozen=True)
class Shards:
    """A complete file: its record and its bytes, which are mapped and not read."""

    record: Mapping[str, Any]
    content: np.ndarray

    @classmethod
    def open(cls, path: pathlib.Path) -> "Shards":
        """Open a file; raise a `DamagedError` if its record is damaged. `verify` reads the rest."""
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                file.seek(max(size - _FOOTER.size, 0))
                magic, length, checksum = _FOOTER.unpack(file.read())
                if magic != _MAGIC or length > size - _FOOTER.size:
                    raise DamagedError("its footer is damaged")
                file.seek(size - _FOOTER.size - length)
                text = file.read(length)
            if zlib.crc32(text) != checksum:
                raise DamagedError("its record is damaged")
            record = json.loads(text)
            if size != record["bytes"] + length + _FOOTER.size:
                raise DamagedError("it has another size than its record says")
            content = np.memmap(path, np.uint8, "r", shape=(record["bytes"],)) if record["bytes"] else _NOTHING
        except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
            raise DamagedError(f"it cannot be read ({type(error).__name__})") from error
        return cls(record, content)

    def verify(self) -> None:
        """Compare all bytes with their checksum; raise a `DamagedError` if they differ."""
        if _checksum(self.content) != self.record["checksum"]:
            raise DamagedError("its content differs from what was written")

    def restore(self, abstract: Any) -> Any:
        """Return the tree in the shapes, dtypes and shardings of `abstract`; each device gets only its shards.

        Raises:
          DamagedError: the file is of another tree or sharding.
        """
        expected = checksums.describe(abstract)
        found = {name: {key: entry[key] for key in ("dtype", "shape")} for name, entry in self.record["leaves"].items()}
        if found != expected:
            raise DamagedError("it was written by another model or optimizer")
        offsets = {(leaf, tuple(map(tuple, spans))): offset for leaf, spans, offset in self.record["shards"]}

        def read(number: int, leaf: Any) -> jax.Array:
            arrays = []
            for spans, devices in mesh.local_shards(leaf.shape, leaf.sharding).items():
                if (number, spans) not in offsets:
                    raise DamagedError("it was written with another sharding")
                start = offsets[number, spans]
                shape = [stop - start for start, stop in spans]
                host = self.content[start : start + _size(spans, leaf.dtype)].view(leaf.dtype).reshape(shape)
                # A step donates its inputs: they must not be the mapped file.
                arrays += [jax.device_put(host, device, may_alias=False) for device in devices]
            return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, arrays, dtype=leaf.dtype)

        leaves, structure = jax.tree.flatten(abstract)
        restored = jax.tree.unflatten(structure, [read(number, leaf) for number, leaf in enumerate(leaves)])
        return jax.block_until_ready(restored)


def _checksum(content: Any) -> int:
    checksum = 0
    for start in range(0, len(content), _BLOCK):
        checksum = zlib.crc32(content[start : start + _BLOCK], checksum)
    return checksum


@dataclasses.dataclass(frozen=True)
class Draft:
    """A file whose shards are written, and whose record is not: it has no name yet."""

    temporary: pathlib.Path
    path: pathlib.Path
    record: dict[str, Any]

    def finish(self) -> None:
        """Compute the checksum, write the record and give the file its name; any thread may call this."""
        size = self.record["bytes"]
        content = np.memmap(self.temporary, np.uint8, "r", shape=(size,)) if size else _NOTHING
        text = json.dumps(self.record | {"checksum": _checksum(content)}, separators=(",", ":")).encode()
        with self.temporary.open("ab") as file:
            file.write(text)
            file.write(_FOOTER.pack(_MAGIC, len(text), zlib.crc32(text)))
        os.replace(self.temporary, self.path)


class MemoryFolder:
    """The files of one run in a folder of this host, which several processes of the run may share."""

    def __init__(self, root: pathlib.Path, run: str, identity: Mapping[str, str]) -> None:
        """Create the folder of a run below `root`, and delete what was not complete.

        Args:
          root: folder in memory.
          run: id of the run.
          identity: what a file must have been written with.

        Raises:
          OSError: it cannot be created.
        """
        self.folder, self.identity = root / run, dict(identity)
        self.folder.mkdir(mode=0o700, exist_ok=True)
        for path in self.folder.glob("*/.*"):
            path.unlink(missing_ok=True)

    def place(self) -> str:
        """Return a random text that all processes that share this folder find in it."""
        path = self.folder / _PLACE
        with _temporary(path) as temporary:
            temporary.write_text(secrets.token_hex(8))
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
        return path.read_text()

    def path(self, item: str | int, seat: int) -> pathlib.Path:
        """Return the path of a file, whether it exists or not."""
        return self.folder / str(item) / f"{seat}{_SUFFIX}"

    def held(self) -> dict[str, list[int]]:
        """Return the seats of the files by item; what is damaged or of another identity is not among them."""
        found: dict[str, list[int]] = {}
        for path in sorted(self.folder.glob(f"*/*{_SUFFIX}")):
            with contextlib.suppress(DamagedError):
                if path.stem.isdecimal() and self._is_own(path):
                    found.setdefault(path.parent.name, []).append(int(path.stem))
        return found

    def _is_own(self, path: pathlib.Path) -> bool:
        record = Shards.open(path).record
        return [record.get("identity"), record.get("item"), record.get("seat")] == [
            self.identity,
            path.parent.name,
            int(path.stem),
        ]

    def strangers(self) -> list[str]:
        """Return in what the files of other identities differ, each only once."""
        names = set()
        for path in self.folder.glob(f"*/*{_SUFFIX}"):
            with contextlib.suppress(DamagedError):
                written = Shards.open(path).record.get("identity", {})
                names |= {name for name, value in self.identity.items() if written.get(name) != value}
        return sorted(names)

    def find_damage(self, item: str, seat: int) -> str:
        """Return what is wrong with a file, all of whose bytes are read; "" for an intact one."""
        try:
            Shards.open(self.path(item, seat)).verify()
        except DamagedError as error:
            return str(error)
        return ""

    def delete(self, item: str | int) -> None:
        """Delete all files of an item."""
        shutil.rmtree(self.folder / str(item), ignore_errors=True)

    def keep(self, items: Mapping[str, list[int]]) -> None:
        """Delete all files but these seats of these items."""
        for path in self.folder.glob(f"*/*{_SUFFIX}"):
            if path.stem not in map(str, items.get(path.parent.name, [])):
                path.unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    path.parent.rmdir()

    def remove(self) -> None:
        """Delete all files of the run."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def used(self) -> int:
        """Return the bytes of all files."""
        return sum(path.stat().st_size for path in self.folder.glob(f"*/*{_SUFFIX}") if path.exists())

    def write(self, item: str | int, seat: int, tree: Any, leaves: Mapping[str, Any], data: Mapping[str, Any]) -> Draft:
        """Write this process's shards of a tree; returns when they are in the file, so that a step may donate the tree.

        Args:
          item, seat: name of the file.
          tree: arrays.
          leaves: their `checksums.tree_checksums`.
          data: further JSON values to record.

        Raises:
          OSError: the space is used up.
        """
        path, offset, shards = self.path(item, seat), 0, []
        path.parent.mkdir(mode=0o700, exist_ok=True)
        temporary = _temporary_name(path)
        try:
            with temporary.open("xb", buffering=0) as file:
                for number, spans, array in _from_devices(jax.tree.leaves(tree)):
                    view = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
                    _write_all(file, view)
                    _write_all(file, memoryview(bytes(_padded(len(view)) - len(view))))
                    shards.append([number, spans, offset])
                    offset += _padded(len(view))
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        record = {"identity": self.identity, "item": str(item), "seat": seat, "data": data, "bytes": offset}
        return Draft(temporary, path, record | {"leaves": leaves, "shards": shards})

    # The methods of `transfers.Store`.

    def find(self, item: str, seat: int) -> pathlib.Path | None:
        """Return a complete file, None without one."""
        path = self.path(item, seat)
        return path if path.is_file() else None

    def fingerprint(self, item: str, seat: int) -> str:
        """Return the checksum of a file's record, which has the checksum of its content; "" without the file."""
        try:
            with self.path(item, seat).open("rb") as file:
                file.seek(-_FOOTER.size, os.SEEK_END)
                return file.read().hex()
        except OSError:
            return ""

    def receive(self, item: str, seat: int, size: int, fill: Callable[[memoryview], None]) -> str:
        """Store a file that `fill` reads part by part, and verify it; return the reason against it."""
        path = self.path(item, seat)
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            with _temporary(path) as temporary:
                part = memoryview(bytearray(min(size, _BLOCK)))
                with temporary.open("xb", buffering=0) as file:
                    for start in range(0, size, _BLOCK):
                        view = part[: min(_BLOCK, size - start)]
                        fill(view)
                        _write_all(file, view)
                shards = Shards.open(temporary)
                shards.verify()
                if [shards.record["item"], shards.record["seat"]] != [item, seat]:
                    return "it is another file"
                os.replace(temporary, path)
        except DamagedError as error:
            return f"what was received is damaged: {error}"
        except OSError as error:
            return f"it could not be written to {self.folder} ({error.strerror or error})"
        return ""


def _temporary_name(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


@contextlib.contextmanager
def _temporary(path: pathlib.Path) -> Iterator[pathlib.Path]:
    temporary = _temporary_name(path)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _write_all(file: Any, view: memoryview) -> None:
    while len(view):
        view = view[file.write(view) :]


def _from_devices(leaves: list[jax.Array]) -> Iterator[tuple[int, mesh.Spans, np.ndarray]]:
    """Yield (number of the leaf, its spans, a distinct shard on the host); the next ones are already on their way."""
    pending: deque[tuple[int, mesh.Spans, jax.Array]] = deque()
    flying = 0
    for number, leaf in enumerate(leaves):
        by_device = {shard.device: shard.data for shard in leaf.addressable_shards}
        for spans, devices in mesh.local_shards(leaf.shape, leaf.sharding).items():
            data = by_device[devices[0]]
            data.copy_to_host_async()
            pending.append((number, spans, data))
            flying += data.nbytes
            while flying > _IN_FLIGHT and len(pending) > 1:
                first = pending.popleft()
                flying -= first[2].nbytes
                yield first[0], first[1], np.asarray(first[2])
    for number, spans, data in pending:
        yield number, spans, np.asarray(data)
