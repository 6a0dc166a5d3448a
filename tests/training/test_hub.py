"""Uploads to a local hub: the uploaded files, and a run that continues when an upload fails."""

import base64
import http.server
import json
import pathlib
import threading
import time
from collections.abc import Iterator

import pytest

from jworld.training import hub

CONFIG = hub.HubConfig(repo="me/rooms", patience=0.02)


class Fake:
    """Upload that fails a given number of times."""

    def __init__(self, failures: int = 0) -> None:
        self.failures, self.steps = failures, []
        self.hangs = threading.Event()
        self.hangs.set()

    def __call__(self, step: int) -> None:
        self.steps.append(step)
        self.hangs.wait()
        if self.failures:
            self.failures -= 1
            raise ConnectionError("no\n   network")


def folder(tmp_path: pathlib.Path, *steps: int) -> pathlib.Path:
    for step in steps:
        (tmp_path / str(step)).mkdir()
    return tmp_path


def wait(condition) -> None:
    for _ in range(200):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("the condition stayed false")


def test_every_save_is_uploaded(tmp_path: pathlib.Path) -> None:
    fake, messages = Fake(), []
    with hub.Uploads(CONFIG, folder(tmp_path, 1, 2), fake, message=messages.append) as uploads:
        for step in (1, 2):
            uploads.saved(step, is_last=False)
            wait(lambda: len(messages) == len(fake.steps) and fake.steps[-1:] == [step])  # noqa: B023
    assert fake.steps == [1, 2]
    assert messages == ["uploaded step 1 to me/rooms", "uploaded step 2 to me/rooms"]


def test_failures_are_reported_and_retried_with_the_newest_step(tmp_path: pathlib.Path) -> None:
    fake, messages = Fake(failures=2), []
    with hub.Uploads(CONFIG, folder(tmp_path, 1, 5), fake, message=messages.append, pauses=(0.05,)) as uploads:
        uploads.saved(1, is_last=False)
        wait(lambda: len(fake.steps) >= 1)
        uploads.saved(5, is_last=False)
        wait(lambda: "uploaded step 5 to me/rooms" in messages)
    assert messages[0] == "upload of step 1 to me/rooms failed: no network; trying again in 0.05 s"
    assert fake.steps[-1] == 5


def test_a_hub_that_hangs_does_not_block_the_run(tmp_path: pathlib.Path) -> None:
    fake, messages = Fake(), []
    fake.hangs.clear()
    began = time.perf_counter()
    with hub.Uploads(CONFIG, folder(tmp_path, 1, 2, 3), fake, message=messages.append) as uploads:
        uploads.saved(1, is_last=False)
        wait(lambda: fake.steps == [1])
        uploads.saved(2, is_last=False)
        uploads.saved(3, is_last=True)
        assert time.perf_counter() - began < 2
    assert time.perf_counter() - began < 15
    assert messages == [
        "the checkpoint of step 3 was not uploaded to me/rooms: run the same command again to upload it"
    ]
    fake.hangs.set()


def test_a_run_that_fails_does_not_wait(tmp_path: pathlib.Path) -> None:
    fake, messages = Fake(), []
    fake.hangs.clear()
    uploads = hub.Uploads(hub.HubConfig(repo="r", patience=9), folder(tmp_path, 1), fake, message=messages.append)
    uploads.saved(1, is_last=False)
    uploads.__exit__(KeyError, KeyError(), None)
    assert messages == []
    fake.hangs.set()


def test_files_are_awaited(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_POLL", 0.01)
    fake, messages = Fake(), []
    (tmp_path / "4.orbax-checkpoint-tmp").mkdir()
    with hub.Uploads(CONFIG, tmp_path, fake, message=messages.append) as uploads:
        uploads.saved(4, is_last=False)
        time.sleep(0.1)
        assert fake.steps == []
        (tmp_path / "4.orbax-checkpoint-tmp").rename(tmp_path / "4")
        wait(lambda: messages == ["uploaded step 4 to me/rooms"])


def test_strategies(tmp_path: pathlib.Path) -> None:
    fake, messages = Fake(), []
    config = hub.HubConfig(repo="me/rooms", strategy="end")
    with hub.Uploads(config, folder(tmp_path, 1, 2), fake, message=messages.append) as uploads:
        uploads.saved(1, is_last=False)
        uploads.saved(2, is_last=True)
    assert fake.steps == [2]
    with hub.Uploads(hub.HubConfig(), tmp_path, fake, message=messages.append) as uploads:
        uploads.saved(3, is_last=True)
    assert fake.steps == [2]
    with pytest.raises(ValueError, match="expected owner/name"):
        hub.HubConfig(repo="a/b/c")


class Handler(http.server.BaseHTTPRequestHandler):
    """Part of the hub's API that an upload of small files needs."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server = self.server
        if self.path == "/api/repos/create":
            server.created.append(json.loads(body))
            self.reply({"url": f"http://{self.headers['Host']}/me/rooms"})
        elif self.path.endswith("/preupload/main"):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.reply({"files": files})
        elif self.path.endswith("/commit/main"):
            server.commits.append([json.loads(line) for line in body.splitlines()])
            self.reply(
                {"commitUrl": f"http://{self.headers['Host']}/me/rooms/commit/1", "commitOid": "1", "hookOutput": ""}
            )
        else:
            self.reply({})

    def do_GET(self) -> None:
        if "/tree/" in self.path:
            path = "checkpoints/2/params/a"
            self.reply([{"type": "file", "path": path, "size": 1, "oid": "0"}])
        else:
            self.reply({"id": "me/rooms", "sha": "0", "siblings": [{"rfilename": "checkpoints/2/params/a"}]})

    def reply(self, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[http.server.ThreadingHTTPServer]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.created, server.commits = [], []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "secret")
    yield server
    server.shutdown()


def test_uploaded_files(tmp_path: pathlib.Path, server: http.server.ThreadingHTTPServer) -> None:
    for name in ("config.json", "encoders/tokenizer.json", "checkpoints/4/params/a", "checkpoints/3/params/a", "other"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    hub.uploader(hub.HubConfig(repo="me/rooms", private=True), tmp_path)(4)
    assert server.created[0]["name"] == "rooms"
    (commit,) = server.commits
    assert commit[0]["value"]["summary"] == "Step 4"
    added = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"]).decode()
        for line in commit[1:]
        if line["key"] == "file"
    }
    assert added == {name: name for name in ("config.json", "encoders/tokenizer.json", "checkpoints/4/params/a")}
    assert [line["value"]["path"] for line in commit if line["key"] == "deletedFile"] == ["checkpoints/2/params/a"]
