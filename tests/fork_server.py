"""Program that imports a module once and calls its main in forks: the import takes longer than most launches.

`python tests/fork_server.py MODULE [--no-samples]` reads a JSON object per line with "arguments" and the files "stdout"
and "stderr", which may be the same. It prints the process of the fork and, at its end, its exit code.
"""

import importlib
import json
import os
import sys
import traceback
import types


def main() -> None:
    """Serve until the standard input ends."""
    sys.path[0] = os.getcwd()
    module = importlib.import_module(sys.argv[1])
    if "--no-samples" in sys.argv and hasattr(module, "show"):
        # Samples are made from a finished run and take most of a launch.
        module.show = lambda job: True  # type: ignore[attr-defined]
    for line in sys.stdin:
        request = json.loads(line)
        if not (child := os.fork()):
            _run(module, request)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _run(module: types.ModuleType, request: dict[str, object]) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(str(request[name]), os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    code = 0
    try:
        sys.argv = [str(module.__file__), *request["arguments"]]  # type: ignore[misc]
        module.main()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
