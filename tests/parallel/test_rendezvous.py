"""Rendezvous and failure detection between processes, on local sockets; no devices."""

import concurrent.futures
import pathlib
import re
import signal
import socket
import subprocess
import sys
from typing import Any

import pytest

from jworld.parallel import channels, rendezvous, roll_call
from jworld.utils import errors

ROOT = pathlib.Path(__file__).parents[2]


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def place(port: int, index: int, count: int = 3, hosts: tuple[str, ...] = ()) -> roll_call.ProcessInfo:
    return roll_call.ProcessInfo(coordinator=f"localhost:{port}", count=count, index=index, hosts=hosts)


def connect(members: list[roll_call.ProcessInfo], timeout: float) -> list[rendezvous.Peers | BaseException]:
    """Return the result of each process; here a process is a thread."""
    with concurrent.futures.ThreadPoolExecutor(len(members)) as pool:
        futures = [pool.submit(rendezvous.Peers.connect, place, timeout) for place in members]
        return [future.exception() or future.result() for future in futures]


def test_every_process_gets_all_host_names() -> None:
    port = free_port()
    found = connect([place(port, index) for index in range(3)], timeout=20)
    for group in found:
        assert isinstance(group, rendezvous.Peers)
        assert group.process.hosts == [socket.gethostname()] * 3
        assert group.process.name(2) == f"process 2 ({socket.gethostname()})"


def test_all_processes_name_the_missing_ones() -> None:
    port = free_port()
    found = connect([place(port, index, 4, ("a", "b", "c", "d")) for index in (0, 2)], timeout=1)
    for error in found:
        assert isinstance(error, errors.RestartError)
        assert f"process 1 (b), process 3 (d) of 4 did not connect to localhost:{port} within 1 s" in str(error)


def test_a_long_wait_names_the_missing_early(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(roll_call, "REPORT_SECONDS", 0.5)
    port = free_port()
    found = connect([place(port, index, 3, ("a", "b", "c")) for index in (0, 2)], timeout=3)
    assert all(isinstance(error, errors.RestartError) for error in found)
    assert capfd.readouterr().err == "waiting up to 3 s for process 1 (b) of 3\n"


def test_a_missing_first_process_is_named() -> None:
    port = free_port()
    with pytest.raises(errors.RestartError, match=rf"process 0 \(a\) did not answer at localhost:{port} within 1 s"):
        rendezvous.Peers.connect(place(port, 1, hosts=("a", "b", "c")), timeout=1)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([(1, 3), (1, 3)], "two processes were started as process 1"),
        ([(1, 3), (2, 4)], "process 2 .* was started with --num-processes=4, process 0 with 3"),
    ],
)
def test_conflicting_arguments_are_user_errors(others: list[tuple[int, int]], message: str) -> None:
    port = free_port()
    found = connect([place(port, 0), *(place(port, index, count) for index, count in others)], timeout=20)
    for error in found:
        assert isinstance(error, errors.UserError)
        assert re.search(message, str(error))


PROCESS = """
import sys, time
from jworld.parallel import channels, rendezvous, roll_call
from jworld.utils import errors

index, port = int(sys.argv[1]), sys.argv[2]
process = roll_call.ProcessInfo(coordinator=f"localhost:{port}", count=3, index=index, hosts="abc")
group = rendezvous.Peers.connect(process, 30, hang_seconds=4)
group.watch()
print("connected", flush=True)
word = sys.stdin.readline().strip()
if word == "fail":
    group.fail("the disk is full", errors.MISTAKE)
if word == "agree":
    facts = {"data": "other" if index == 2 else "same"}
    try:
        group.agree(facts)
    except errors.UserError as error:
        group.fail(str(error), errors.MISTAKE)
if word == "leave":
    group.leave()
    sys.exit(0)
time.sleep(60)
"""


def group() -> list[subprocess.Popen[str]]:
    port = str(free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(index), port],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(3)
    ]
    for process in processes:
        assert process.stdout.readline() == "connected\n", process.stderr.read()
    return processes


@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_process_ends_the_others(victim: int) -> None:
    processes = group()
    processes[victim].kill()
    for index in {0, 1, 2} - {victim}:
        _, errors_ = processes[index].communicate(timeout=20)
        assert processes[index].returncode == errors.RESTART
        assert errors_.startswith(f"error: process {victim} ({'abc'[victim]}) ended unexpectedly")


@pytest.mark.parametrize("failing", [0, 1])
def test_a_failure_ends_all_with_its_message_and_exit_code(failing: int) -> None:
    processes = group()
    processes[failing].stdin.write("fail\n")
    processes[failing].stdin.flush()
    for index in range(3):
        _, printed = processes[index].communicate(timeout=20)
        assert processes[index].returncode == errors.MISTAKE
        name = "" if index == failing else f"process {failing} ({'abc'[failing]}): "
        assert printed == f"error: {name}the disk is full\n"


def test_leaving_raises_no_alarm() -> None:
    processes = group()
    for process in processes:
        process.stdin.write("leave\n")
        process.stdin.flush()
        _, printed = process.communicate(timeout=20)
        assert (process.returncode, printed) == (0, "")


@pytest.mark.parametrize("victim", [0, 1])
def test_a_stopped_process_is_named(victim: int) -> None:
    processes = group()
    processes[victim].send_signal(signal.SIGSTOP)
    for index in {0, 1, 2} - {victim}:
        _, printed = processes[index].communicate(timeout=30)
        assert processes[index].returncode == errors.RESTART
        assert re.fullmatch(rf"error: process {victim} \({'abc'[victim]}\) has given no sign of life .*\n", printed)
    processes[victim].kill()
    processes[victim].communicate()


def test_facts_that_become_known_later_are_compared() -> None:
    processes = group()
    for process in processes:
        process.stdin.write("agree\n")
        process.stdin.flush()
    for process in processes:
        _, printed = process.communicate(timeout=20)
        assert process.returncode == errors.MISTAKE
        assert "process 2 (c) has data other (process 0: same)" in printed


def test_a_failed_computation_waits_for_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gloo gives up before a stopped process is silent for long enough; its error is not the one that is reported."""

    class EndedError(Exception):
        pass

    def end(self: Any, message: str, code: int, **_: Any) -> None:
        raise EndedError(message, code)

    monkeypatch.setattr(rendezvous.Peers, "_end", end)
    ends = socket.socketpair()
    peers = rendezvous.Peers(place(1, 0, 2), {1: channels.Channel(ends[0])}, hang_seconds=2)
    error = RuntimeError("FAILED_PRECONDITION: Gloo all-reduce failed: Read timeout")
    with pytest.raises(EndedError, match="process 1 has given no sign of life"):
        peers.find_cause(error)
    assert not rendezvous.is_communication(RuntimeError("INVALID_ARGUMENT: shapes differ"))
    assert not rendezvous.is_communication(ValueError("gloo"))
