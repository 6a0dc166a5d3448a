"""Local stand-in for a Hugging Face hub: repositories in memory, with uploads and downloads of files."""

import base64
import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.ThreadingHTTPServer):
    """The server.

    Attributes:
      repositories: files of each repository by name.
      created: requests to create a repository.
      commits: lines of each commit, as sent.
      requests: method and path of each request.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.created: list[dict[str, Any]] = []
        self.commits: list[list[dict[str, Any]]] = []
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    """The part of the hub's API that small files need."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append(f"POST {self.path}")
        path = urllib.parse.urlparse(self.path).path
        if path == "/api/repos/create":
            values = json.loads(body)
            self.server.created.append(values)
            name = f"{values.get('organization') or 'me'}/{values['name']}"
            self.server.repositories.setdefault(name, {})
            self.reply({"url": f"{self.server.url}/{name}"})
        elif path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            self.reply({"files": [{"path": x, "uploadMode": "regular", "shouldIgnore": False} for x in names]})
        elif path.endswith("/commit/main"):
            self.commit(self.repository(path), [json.loads(line) for line in body.splitlines()])
        else:
            self.reply({})

    def commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        self.server.commits.append(lines)
        files = self.server.repositories.setdefault(name, {})
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                files.pop(value["path"], None)
        self.reply({"commitUrl": f"{self.server.url}/{name}/commit/{COMMIT}", "commitOid": COMMIT, "hookOutput": ""})

    def repository(self, path: str) -> str:
        parts = path.strip("/").split("/")
        start = 2 if parts[0] == "api" else 0
        return "/".join(parts[start : start + 2])

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
        name = self.repository(path)
        files = self.server.repositories.get(name)
        if files is None:
            self.reply({"error": "Repository not found"}, status=404, headers={"X-Error-Code": "RepoNotFound"})
        elif "/tree/" in path:
            self.reply([{"type": "file", "path": x, "size": len(data), "oid": "0" * 40} for x, data in files.items()])
        elif path.startswith("/api/"):
            self.reply({"id": name, "sha": COMMIT, "siblings": [{"rfilename": x} for x in files]})
        else:
            self.send(files.get(path.split("/resolve/", 1)[1].split("/", 1)[1]))

    def send(self, data: bytes | None) -> None:
        if data is None:
            self.reply({"error": "Entry not found"}, status=404, headers={"X-Error-Code": "EntryNotFound"})
            return
        self.respond(data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT})

    def reply(self, value: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.respond(json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})}, status)

    def respond(self, data: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def started() -> Iterator[Hub]:
    """Serve an empty hub."""
    hub = Hub()
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()


def environment(hub: Hub, cache: object) -> dict[str, str]:
    """Return variables with which processes use a hub."""
    return {"HF_ENDPOINT": hub.url, "HF_TOKEN": "secret", "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "0"}


@contextlib.contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, cache: object) -> Iterator[Hub]:
    """Serve an empty hub and let all clients of this process and its children use it."""
    import huggingface_hub.constants as constants

    with started() as hub:
        for name, value in environment(hub, cache).items():
            monkeypatch.setenv(name, value)
        # Read from the environment when the library is imported.
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        yield hub
