"""Runs the blocks of a page in a folder that looks like a checkout with downloads in it."""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping

import fake_hub

from guides import blocks, pages, shrink

ROOT = blocks.ROOT
HERE = pathlib.Path(__file__).parent
#: Parts of the checkout that commands only read; `assets` and `configs` are copied, because commands may write there.
LINKED = ("scripts", "benchmarks", "tests", "Makefile", "pyproject.toml", "constraints-py311.txt", "Containerfile")
COPIED = ("assets", "configs")
SECONDS = 900
LOG = ".commands.jsonl"
#: Options whose value is a file or folder that the command makes.
_MADE = re.compile(r"(?:^|\s)--(?:out|output|workdir|json|plot)[ =](\S+)")
_WROTE = re.compile(r"^(?:wrote|next line) (?:.* to )?(\S+?)[:,]?(?: and (\S+?))?(?:[:,(]|\s|$)", re.MULTILINE)
_NEXT = re.compile(r"^next: (python -m jworld\.train .*)$", re.MULTILINE)
# `<image>` is a part of prompts.
_PLACEHOLDER = re.compile(r"<(?!image>)[A-Za-z][^<>\n]*>|(?<![\w.\"'])\.\.\.(?![\w.\"'])|=\.\.\.")


@dataclasses.dataclass(frozen=True)
class Ran:
    """One command that a block ran: its words with overrides, its exit code, its seconds on the clock and of CPUs."""

    command: list[str]
    code: int
    seconds: float
    cpu_seconds: float


class BlockError(AssertionError):
    """A block that failed, with the end of what it printed."""


def make_folder(folder: pathlib.Path) -> None:
    """Fill the folder of a page with the parts of a checkout and stand-ins of its programs."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name)
    (folder / "docs").mkdir()
    (folder / "small").mkdir()
    for name in {name.partition(":")[0] for name in shrink.RECIPES}:
        (folder / "small" / name).write_text(_RECIPE.format(name=name))
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "python3", "jworld"):
        program = programs / name
        program.write_text(f"#!{sys.executable} -IS\n" + (HERE / "client.py").read_text())
        program.chmod(0o755)
    # Installed, so that the targets of the Makefile do not install.
    for name in (".demo", ".test"):
        (folder / ".venv" / name).touch()


#: A recipe with the sizes of the guides, for commands that refuse keys which contradict their recipe.
_RECIPE = '''"""configs/{name} with the sizes of the guides."""

from guides import small


def get_config(variant=""):
    return small.recipe("{name}" + (f":{{variant}}" if variant else ""))
'''


@contextlib.contextmanager
def serve() -> Iterator[dict[str, str]]:
    """Start the server of all pages; yields the environment of commands."""
    # The path of a socket has at most 107 bytes.
    with tempfile.TemporaryDirectory() as short, fake_hub.started() as hub:
        environment = os.environ | shrink.ENVIRONMENT | {"GUIDE_SERVER": f"{short}/server"}
        environment |= fake_hub.environment(hub, f"{short}/downloads")
        server = subprocess.Popen(
            [sys.executable, str(HERE / "server.py"), environment["GUIDE_SERVER"]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            yield environment
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def in_folder(folder: pathlib.Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of commands in the folder of a page."""
    search = [folder / ".venv" / "bin", pathlib.Path(sys.executable).parent, environment["PATH"]]
    return {**environment, "PATH": ":".join(map(str, search)), "GUIDE_LOG": str(folder / LOG)}


def prepare(page: pages.Page, folder: pathlib.Path, environment: Mapping[str, str]) -> None:
    """Make what the reader of a page has."""
    if not page.prepare:
        return
    modules = sorted({name.partition(".")[0] for name in page.prepare})
    code = f"from guides import {', '.join(modules)}\n" + "".join(f"{name}()\n" for name in page.prepare)
    code, printed = execute(["python", "-c", code], folder, environment)
    if code:
        raise BlockError(f"stand-ins were not made\n{printed[-6000:]}")


def execute(command: list[str], folder: pathlib.Path, environment: Mapping[str, str]) -> tuple[int, str]:
    """Run a program in a folder; -> its exit code and all that it printed."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=in_folder(folder, environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        output.seek(0)
        return code, output.read().decode(errors="replace")


def run(block: blocks.Block, page: pages.Page, folder: pathlib.Path, environment: Mapping[str, str]) -> list[Ran]:
    """Run one block; a `BlockError` if it fails, or if a file that it promises is absent."""
    text = page.bind(shrink.values(block.text))
    if block.kind == "shell" and (left := _PLACEHOLDER.search(_without_comments(text))):
        raise BlockError(f"{block.name}: {left[0]!r} has no value in guides/pages.py")
    program = (
        ["python", "-c", page.python + text] if block.kind == "python" else ["bash", "-euo", "pipefail", "-c", text]
    )
    before = len(_log(folder))
    code, printed = execute(program, folder, environment)
    ran = _log(folder)[before:]
    if code:
        last = " ".join(ran[-1].command) if ran else text
        raise BlockError(f"{block.name} ended with exit code {code}\n{last}\n{printed[-6000:]}")
    for made in promised(text, printed):
        if not (folder / made).exists():
            raise BlockError(f"{block.name} promises {made}, which is absent\n{printed[-3000:]}")
    if page.follow and (following := _NEXT.search(printed)):
        ran += run(dataclasses.replace(block, text=following[1] + "\n"), page, folder, environment)
    return ran


def _log(folder: pathlib.Path) -> list[Ran]:
    path = folder / LOG
    return [Ran(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def promised(text: str, printed: str) -> list[str]:
    """Return the files that a block's options name as output, and those that its commands print as written.

    A dry run makes nothing.
    """
    options = "" if "--dry-run" in text else _without_comments(text)
    named = [name.strip("'\"") for name in _MADE.findall(options)]
    return named + [name for match in _WROTE.findall(printed) for name in match if name]


def _without_comments(text: str) -> str:
    return re.sub(r"(^|\s)#.*$", "", text, flags=re.MULTILINE)
