"""Captions by URL: DataComp's tables of image URLs, and webdataset shards, from a local server."""

import contextlib
import functools
import http.server
import io
import json
import pathlib
import re
import tarfile
import threading
from collections.abc import Iterator
from typing import Any

import full_disk
import PIL.Image
import pyarrow
import pytest
from conversation_configs import make_config
from pyarrow import parquet

from jworld.data.conversations import captions, dataset, image_files, prepared, remote
from jworld.utils import limits
from jworld.utils.errors import UserError


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; a path that begins with /flaky fails at its first request, /cut ends too early."""

    seen: dict[str, int]

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.seen[self.path] = self.seen.get(self.path, 0) + 1
        if self.path.startswith("/flaky") and self.seen[self.path] == 1:
            self.send_error(503)
            return
        if self.path.startswith("/cut"):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"short")
            return
        if self.path.startswith("/large"):
            # Without a declared length a connection that closes ends the file.
            self.send_response(200)
            if "declared" in self.path:
                self.send_header("Content-Length", "1000000000000")
            self.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(100):
                    self.wfile.write(bytes(1 << 16))
            return
        super().do_GET()


@pytest.fixture
def site(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[pathlib.Path, str, dict[str, int]]]:
    """A folder, its address, and the requests of each path."""
    monkeypatch.setattr(remote, "PAUSE", 0.0)
    folder = tmp_path / "site"
    folder.mkdir()
    handler = type("Counting", (Handler,), {"seen": {}})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}", handler.seen
    server.shutdown()
    server.server_close()


def png(shade: int) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (12, 8), (shade, shade, shade)).save(file, "PNG")
    return file.getvalue()


def shard(path: pathlib.Path, *shades: int) -> None:
    with tarfile.open(path, "w") as archive:
        for shade in shades:
            for suffix, data in (("png", png(shade)), ("txt", f"shade {shade}".encode())):
                member = tarfile.TarInfo(f"{shade:04}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def prepare(folder: pathlib.Path, path: str, **options: Any) -> dataset.Conversations:
    config = make_config(folder, format="captions", path=path, val_share=0.0, **options)
    config.data.conversations.question = "What?"
    data = dataset.Conversations(config, image_tokens=4)
    data.prepare()
    return data


def shades(data: dataset.Conversations) -> dict[str, tuple[int, ...]]:
    source = data.source("train")
    rows = [source[number] for number in range(len(source))]
    return {row.turns[1].text: image_files.read(row.places[0], data.directory).getpixel((3, 3)) for row in rows}  # type: ignore[misc]


def test_a_table_of_image_urls(site: Any, tmp_path: pathlib.Path) -> None:
    folder, address, seen = site
    for name, shade in (("a.png", 10), ("flaky.png", 20)):
        (folder / name).write_bytes(png(shade))
    names = ["a.png", "flaky.png", "absent.png", "cut.png"]
    table = {"url": [f"{address}/{name}" for name in names], "text": names, "uid": ["x"] * 4}
    parquet.write_table(pyarrow.table(table), tmp_path / "datacomp.parquet")
    data = prepare(tmp_path, str(tmp_path / "datacomp.parquet"))
    assert shades(data) == {"a.png": (10, 10, 10), "flaky.png": (20, 20, 20)}
    unusable = (data.directory / prepared.UNUSABLE).read_text().splitlines()
    assert len(unusable) == 2
    assert "absent.png cannot be downloaded (HTTP Error 404" in unusable[0]
    assert "cut.png cannot be downloaded (received 5 of 1000 bytes)" in unusable[1]
    assert [seen[f"/{name}"] for name in names] == [1, 2, 1, remote.ATTEMPTS]
    # Training reads the images from the set, not from their servers.
    next(data.batches("train"))
    assert sum(seen.values()) == 4 + remote.ATTEMPTS


@pytest.mark.parametrize("name", ["large.png", "large-declared.png", "large.tar", "large-declared.tar"])
def test_downloads_have_a_limit(site: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    folder, address, seen = site
    for limit in ("IMAGE_BYTES", "SHARD_BYTES"):
        monkeypatch.setattr(limits, limit, 3 << 16)
    found = r"1,000,000,000,000 bytes, the limit is" if "declared" in name else r"more than"
    (folder / "a.png").write_bytes(png(10))
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"url": f"{address}/{own}", "caption": own}) + "\n" for own in ("a.png", name))
    )
    if name.endswith(".tar"):
        with pytest.raises(UserError, match=rf"{name} cannot be downloaded \(it has {found} 196,608"):
            prepare(tmp_path, f"{address}/{name}")
    else:
        data = prepare(tmp_path, str(tmp_path / "rows.jsonl"))
        assert shades(data) == {"a.png": (10, 10, 10)}
        (reason,) = (data.directory / prepared.UNUSABLE).read_text().splitlines()
        assert re.search(rf"{name} cannot be downloaded \(it has {found} 196,608", reason)
    assert seen[f"/{name}"] == 1
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_full_disk_makes_no_row_unusable(site: Any, tmp_path: pathlib.Path) -> None:
    folder, address, _ = site
    (folder / "a.png").write_bytes(bytes(100_000))
    (tmp_path / "rows.jsonl").write_text(json.dumps({"url": f"{address}/a.png", "caption": "a"}))
    with (
        full_disk.after(50_000),
        pytest.raises(UserError, match=r"could not be written \(File too large\): free space"),
    ):
        prepare(tmp_path, str(tmp_path / "rows.jsonl"))


def test_json_lines_of_image_urls(site: Any, tmp_path: pathlib.Path) -> None:
    folder, address, _ = site
    (folder / "a.png").write_bytes(png(10))
    rows = [{"url": f"{address}/a.png", "caption": "a"}, {"url": "", "caption": "b"}]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = prepare(tmp_path, str(tmp_path / "list.jsonl"))
    assert shades(data) == {"a": (10, 10, 10)}
    assert "it has no image" in (data.directory / prepared.UNUSABLE).read_text()


def test_shards_by_url(site: Any, tmp_path: pathlib.Path) -> None:
    folder, address, seen = site
    for number in range(3):
        shard(folder / f"{number:02}.tar", 10 * number, 10 * number + 1)
    data = prepare(tmp_path, f"{address}/{{00..02}}.tar", limit=4)
    assert shades(data) == {f"shade {shade}": (shade,) * 3 for shade in (0, 1, 10, 11)}
    # Only the shards that the limit needs are downloaded.
    assert seen == {"/00.tar": 1, "/01.tar": 1}


def test_a_list_of_shards(site: Any, tmp_path: pathlib.Path) -> None:
    folder, address, _ = site
    (folder / "other").mkdir()
    shard(folder / "00.tar", 5)
    shard(folder / "other" / "00.tar", 7)
    shard(tmp_path / "local.tar", 6)
    (tmp_path / "shards.txt").write_text(f"{address}/00.tar\n\n{address}/other/00.tar\n{tmp_path}/local.tar\n")
    data = prepare(tmp_path, str(tmp_path / "shards.txt"))
    assert shades(data) == {f"shade {shade}": (shade,) * 3 for shade in (5, 7, 6)}


def test_mistakes(site: Any, tmp_path: pathlib.Path) -> None:
    _, address, _ = site
    with pytest.raises(UserError, match=r"conversations.path: http.*/none.tar cannot be downloaded \(HTTP Error 404"):
        prepare(tmp_path, f"{address}/none.tar")
    with pytest.raises(UserError, match=r"nowhere.tar is absent"):
        prepare(tmp_path, str(tmp_path / "nowhere.tar"))
    assert captions.expand("a{08..10}/{0..1}") == [f"a{i}/{j}" for i in ("08", "09", "10") for j in (0, 1)]
