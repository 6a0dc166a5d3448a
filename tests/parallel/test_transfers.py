"""Files between two processes of a run: sent whole, verified, and only for those who have the run's secret."""

import pathlib
import socket
import threading

import jax
import jax.numpy as jnp
import pytest

from jworld.parallel import transfers
from jworld.parallel.channels import Channel
from jworld.training import checksums, memory_files

SECRET = "token:secret"


def store(folder: pathlib.Path, name: str) -> memory_files.MemoryFolder:
    (folder / name).mkdir()
    return memory_files.MemoryFolder(folder / name, "run", {"the config": "a"})


def write(own: memory_files.MemoryFolder, *, size: int = 1000, item: str = "4", seat: int = 0) -> pathlib.Path:
    tree = {"x": jax.device_put(jnp.arange(size, dtype=jnp.float32), jax.devices()[0])}
    own.write(item, seat, tree, checksums.tree_checksums(tree), {"next_batch": 3}).finish()
    return own.path(item, seat)


@pytest.fixture
def ends(tmp_path: pathlib.Path):
    """Yield (own files, files of the other process, its address)."""
    own, other = store(tmp_path, "own"), store(tmp_path, "other")
    server = transfers.Server("127.0.0.1", SECRET, other)
    yield own, other, ("127.0.0.1", server.port)
    server.close()


@pytest.mark.parametrize("size", [0, 1, 1000, 9_000_000])
def test_a_file_is_stored_and_fetched(ends, size: int) -> None:
    own, other, address = ends
    path = write(own, size=size)
    transfers.put(address, SECRET, "4", 0, path, own.fingerprint("4", 0))
    assert other.path("4", 0).read_bytes() == path.read_bytes()
    content = path.read_bytes()
    path.unlink()
    transfers.get(address, SECRET, "4", 0, own)
    assert path.read_bytes() == content
    assert other.held() == own.held() == {"4": [0]}


def test_what_is_there_is_not_sent_again(ends, monkeypatch: pytest.MonkeyPatch) -> None:
    own, other, address = ends
    path = write(own)
    transfers.put(address, SECRET, "4", 0, path, own.fingerprint("4", 0))
    monkeypatch.setattr(transfers, "_send_file", None)
    transfers.put(address, SECRET, "4", 0, path, own.fingerprint("4", 0))
    assert other.held() == {"4": [0]}


def test_damage_on_the_way_is_refused(ends) -> None:
    own, other, address = ends
    path = write(own)
    content = bytearray(path.read_bytes())
    content[777] ^= 4
    path.write_bytes(content)
    with pytest.raises(transfers.TransferError, match="what was received is damaged: its content differs"):
        transfers.put(address, SECRET, "4", 0, path, "new")
    assert not other.held()
    with pytest.raises(transfers.TransferError, match="it is another file"):
        transfers.put(address, SECRET, "5", 0, write(own), "new")
    assert not [path for path in other.folder.rglob("*") if path.is_file()]


def test_a_sender_that_is_killed_leaves_nothing(ends) -> None:
    _, other, address = ends
    with transfers._Client(address, SECRET) as channel:
        channel.send(do="put", item="4", seat=0, bytes=10_000, fingerprint="x")
        assert channel.receive(5) == {"go": True}
        channel.connection.sendall(bytes(5000))
    # The next request is served after the first has ended, at the latest when its thread has.
    for thread in threading.enumerate():
        if thread.name == "copy":
            thread.join()
    assert not [path for path in other.folder.rglob("*") if path.is_file()]


def test_what_is_absent_is_refused(ends) -> None:
    own, _, address = ends
    with pytest.raises(transfers.TransferError, match="does not have that file"):
        transfers.get(address, SECRET, "9", 0, own)


@pytest.mark.parametrize("item", ["../4", "/etc/passwd", "", "a" * 40, 4])
def test_items_are_never_paths(ends, item: str) -> None:
    own, other, address = ends
    write(other)
    with pytest.raises(transfers.TransferError, match="not valid"):
        transfers.get(address, SECRET, item, 0, own)


def test_strangers_get_and_store_nothing(ends) -> None:
    own, other, address = ends
    path = write(own)
    write(other, item="6")
    for attempt in (
        lambda: transfers.put(address, "token:guess", "4", 0, path, "new"),
        lambda: transfers.get(address, "token:guess", "6", 0, own),
    ):
        with pytest.raises(transfers.TransferError, match="did not prove that it belongs to this run"):
            attempt()
    # A client that skips the proof.
    channel = Channel(socket.create_connection(address))
    assert channel.receive(5).keys() == {"nonce"}
    channel.send(do="get", item="6", seat=0)
    assert channel.receive(5) is None
    assert other.held() == {"6": [0]}


def test_a_false_server_is_not_believed(ends) -> None:
    own, _, _ = ends
    path = write(own)
    false = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        channel = Channel(false.accept()[0])
        channel.send(nonce="0" * 32)
        channel.receive(5)
        channel.send(proof="0" * 64)

    threading.Thread(target=serve, daemon=True).start()
    with pytest.raises(transfers.TransferError, match="did not prove"):
        transfers.put(("127.0.0.1", false.getsockname()[1]), SECRET, "4", 0, path, "new")
    false.close()


def test_a_host_that_is_gone_is_named(ends) -> None:
    own, _, _ = ends
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(transfers.TransferError, match=f"no connection to 127.0.0.1:{port}"):
        transfers.put(("127.0.0.1", port), SECRET, "4", 0, write(own), "new")
