"""Server that runs the commands of a page in forks of one process, which has imported the project once.

`python tests/guides/server.py SOCKET` prints "ready" and serves until its standard input ends. A command of the
project runs with the overrides of `shrink`; any other runs in the interpreter that it would have run in. Every command
adds a line to the file that GUIDE_LOG names: its arguments, exit code, seconds and CPU seconds.
"""

import importlib
import json
import os
import pathlib
import runpy
import select
import signal
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

#: What commands import, except for the commands' own modules.
IMPORTS = (
    "jworld.cli",
    "jworld.train",
    "jworld.generate",
    "jworld.evaluate",
    "jworld.precompute.__main__",
    "conversion",
)
#: Variables that are read when modules are imported: a command that changes one gets its own interpreter.
_EARLY_NAMES = ("JAX_", "XLA_", "TF_", "PYTHON", "JWORLD_")


def _early(environment: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in environment.items() if key.startswith(_EARLY_NAMES)}


_EARLY = _early(os.environ)


def main() -> None:
    for name in IMPORTS:
        importlib.import_module(name)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[1])
    listener.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            return
        connection, _ = listener.accept()
        if not os.fork():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            handle(connection)
            return
        connection.close()


def handle(connection: socket.socket) -> None:
    """Run one command in a further fork, and answer with its exit code."""
    size, files, _, _ = socket.recv_fds(connection, 8, 3)
    data = b""
    while len(data) < int.from_bytes(size, "little"):
        data += connection.recv(1 << 20)
    request = json.loads(data)
    from guides import shrink

    os.chdir(request["cwd"])
    command = shrink.command([request["name"], *request["arguments"]])
    started = time.monotonic()
    if not (child := os.fork()):
        connection.close()
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        run(command, request)
        return
    for file in files:
        os.close(file)
    _, status, used = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    times = {"seconds": time.monotonic() - started, "cpu_seconds": used.ru_utime + used.ru_stime}
    with open(request["environment"]["GUIDE_LOG"], "a") as lines:
        lines.write(json.dumps({"command": command, "code": code, **times}) + "\n")
    connection.sendall(str(code % 256).encode())
    os._exit(0)


def run(command: list[str], request: dict[str, Any]) -> None:
    """Become the command; an exception or `SystemExit` ends the process as it would end an interpreter."""
    os.environ.clear()
    os.environ.update(request["environment"])
    name, *arguments = command
    if _early(request["environment"]) != _EARLY or not _is_ours(name, arguments):
        interpreter = [] if name == "python" else ["-m", "jworld.cli"]
        os.execv(sys.executable, [sys.executable, *interpreter, *arguments])
    if name == "jworld":
        _call("jworld.cli", arguments)
    elif arguments[0] == "-m":
        _call(arguments[1], arguments[2:])
    elif arguments[0] == "-c":
        sys.argv = ["-c"]
        exec(compile(arguments[1], "<block>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = arguments
        sys.path.insert(0, str(pathlib.Path(arguments[0]).parent))
        runpy.run_path(arguments[0], run_name="__main__")


def _is_ours(name: str, arguments: list[str]) -> bool:
    if name == "jworld" or arguments[:1] == ["-c"]:
        return True
    if arguments[:1] == ["-m"]:
        return arguments[1].split(".")[0] in ("jworld", "conversion")
    return bool(arguments) and arguments[0].startswith(("scripts/", "benchmarks/"))


def _call(name: str, arguments: list[str]) -> None:
    """Call the main function of a module, or of the module that `python -m` runs for a package."""
    if importlib.util.find_spec(f"{name}.__main__" if _is_package(name) else name) is None:
        sys.exit(f"No module named {name}")
    module = importlib.import_module(f"{name}.__main__" if _is_package(name) else name)
    sys.argv = [str(module.__file__), *arguments]
    module.main()


def _is_package(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.submodule_search_locations is not None


if __name__ == "__main__":
    main()
