"""Ctrl-C in a command is one line at any moment, and the second one ends it at once."""

import pathlib
import signal
import subprocess
import sys
import time

import pytest

from jworld.utils import interrupts

#: A command with a place for what it does; it prints "here" where it is interrupted.
PROGRAM = """
import sys
sys.orig_argv = ["python", "-m", "jworld.train"]
import jworld, threading, time
from jworld.utils import errors, interrupts

BEFORE

@errors.exit_on_user_error
def main():
    try:
        BODY
    finally:
        print("cleaned", flush=True)

main()
"""
ENDS = "interrupted: the command ends; press Ctrl-C again to end at once\n"
SAVES = "interrupted: the run saves after this step and ends; press Ctrl-C again to end at once\n"


def interrupted(
    folder: pathlib.Path, body: str, *, before: str = "", times: int = 1, wait: float = 0.0
) -> tuple[int, str, str, float]:
    """Run the program, interrupt it when it is "here", and return exit code, output, errors and seconds to the end."""
    (folder / "program.py").write_text(PROGRAM.replace("BEFORE", before).replace("BODY", body))
    with subprocess.Popen(
        [sys.executable, "program.py"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        time.sleep(wait)
        begun = time.monotonic()
        for _ in range(times):
            process.send_signal(signal.SIGINT)
            time.sleep(0.1)
        output, printed = process.communicate(timeout=60)
    return process.returncode, output, printed, time.monotonic() - begun


def test_one_line_after_what_there_is_to_clean(tmp_path: pathlib.Path) -> None:
    code, output, printed, _ = interrupted(tmp_path, 'print("here", flush=True); time.sleep(60)')
    assert (code, output, printed) == (interrupts.INTERRUPTED, "cleaned\n", ENDS)


def test_before_the_command_begins(tmp_path: pathlib.Path) -> None:
    """Imports take seconds; libraries catch a KeyboardInterrupt there, or print it."""
    code, _, printed, _ = interrupted(tmp_path, "pass", before='print("here", flush=True); time.sleep(60)')
    assert (code, printed) == (interrupts.INTERRUPTED, "interrupted\n")


def test_in_a_call_that_lasts(tmp_path: pathlib.Path) -> None:
    """The line comes at once; Python raises only after the call, and the second signal does not wait for it."""
    body = 'import hashlib; print("here", flush=True); hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)'
    code, output, printed, seconds = interrupted(tmp_path, body, times=2, wait=0.5)
    assert (code, output, printed) == (interrupts.INTERRUPTED, "", ENDS)
    assert seconds < 20


def test_a_thread_that_does_not_end(tmp_path: pathlib.Path) -> None:
    body = "threading.Thread(target=time.sleep, args=(60,)).start(); print('here', flush=True); time.sleep(60)"
    code, output, printed, seconds = interrupted(tmp_path, body)
    assert (code, output, printed) == (interrupts.INTERRUPTED, "cleaned\n", ENDS)
    assert seconds < 30


def test_an_error_in_its_place(tmp_path: pathlib.Path) -> None:
    """Extension modules that are interrupted while they are imported raise an ImportError."""
    body = """
        try:
            print("here", flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            raise ImportError("while initializing the extension")"""
    code, _, printed, _ = interrupted(tmp_path, body)
    assert (code, printed) == (interrupts.INTERRUPTED, ENDS)


def test_a_run_is_asked_to_save(tmp_path: pathlib.Path) -> None:
    body = """
        asked = threading.Event()
        with interrupts.saving(asked.set):
            print("here", flush=True)
            while not asked.is_set():
                time.sleep(0.01)
            print("saved", interrupts.seen())
        sys.exit(interrupts.INTERRUPTED)"""
    code, output, printed, _ = interrupted(tmp_path, body)
    assert (code, output, printed) == (interrupts.INTERRUPTED, "saved True\ncleaned\n", SAVES)


def test_the_second_one_ends_a_save(tmp_path: pathlib.Path) -> None:
    body = """
        with interrupts.saving(lambda: None):
            print("here", flush=True)
            time.sleep(60)"""
    code, output, printed, _ = interrupted(tmp_path, body, times=2)
    assert (code, output, printed) == (interrupts.INTERRUPTED, "", SAVES)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("python -m jworld.train --config=x", True),
        ("python -X utf8 -m conversion import", True),
        ("python -u -m jworld", True),
        ("python /usr/local/bin/jworld train", True),
        (f"python {pathlib.Path(__file__).parents[2] / 'scripts' / 'record_episodes.py'}", True),
        ("python -m pytest", False),
        ("python program.py -m jworld.train", False),
        ("python", False),
        ("python -c import", False),
    ],
)
def test_only_commands_handle_it(monkeypatch: pytest.MonkeyPatch, command: str, expected: bool) -> None:
    monkeypatch.setattr(sys, "orig_argv", command.split())
    assert interrupts.is_command() == expected


def test_a_program_that_imports_jworld_keeps_its_handler() -> None:
    program = "import signal, jworld; assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_children_in_a_shield_do_not_get_it() -> None:
    with interrupts.shielded():
        child = subprocess.Popen([sys.executable, "-c", "import time; print('here', flush=True); time.sleep(60)"],
                                 stdout=subprocess.PIPE)  # fmt: skip
    assert child.stdout is not None
    child.stdout.readline()
    child.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(timeout=0.3)
    child.kill()
    child.communicate()
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, set())
