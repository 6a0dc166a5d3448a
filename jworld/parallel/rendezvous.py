"""The processes of a run, joined by TCP: who did not come, who was lost, and what one of them has to tell the others.

JAX's own service waits for missing processes without naming them, and ends a process whose peer died with a stack
trace after a while. Here process 0 calls the roll on the coordinator's port before JAX takes that port over, and the
connections stay: the operating system closes those of a process that dies, whatever it dies of.

Messages are JSON objects, one a line.
"""

import contextlib
import dataclasses
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from jworld.utils import errors

RETRY_SECONDS = 0.2
#: Missing processes are named after this time, whether or not the wait goes on.
REPORT_SECONDS = 60.0
#: How long a stranger on the port, or a peer with a last message, may take.
PATIENCE_SECONDS = 5.0
#: A host that vanished without a word is missed after idle + count * interval seconds.
KEEPALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 4}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessInfo:
    """The place of this process among those of a run.

    Attributes:
      coordinator: "host:port" of process 0.
      count: processes.
      index: this one, from 0.
      local_devices: the only devices that this process shall see; None for all of its host.
      hosts: the host of each process, as far as the environment tells; "" where it does not.
    """

    coordinator: str
    count: int
    index: int
    local_devices: Sequence[int] | None = None
    hosts: Sequence[str] = ()

    def name(self, index: int) -> str:
        """A process in words."""
        host = self.hosts[index] if index < len(self.hosts) else ""
        return f"process {index}" + (f" ({host})" if host else "")


class _Line:
    """A connection that sends and receives messages."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._received = b""
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if hasattr(socket, name):  # Linux's names
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(self, **message: Any) -> None:
        """Send, unless the other end is gone: that it is shows when reading."""
        with contextlib.suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, timeout: float | None = None) -> dict[str, Any] | None:
        """The next message; None at the end of the connection, or where what came is no message."""
        try:
            self.connection.settimeout(timeout)
            while b"\n" not in self._received:
                part = self.connection.recv(4096)
                if not part:
                    return None
                self._received += part
            first, _, self._received = self._received.partition(b"\n")
            message = json.loads(first)
        except (OSError, ValueError):
            return None
        return message if isinstance(message, dict) else None

    def close(self) -> None:
        self.connection.close()


class Peers:
    """The other processes of a run: process 0 is connected with each, each of them with process 0."""

    def __init__(self, place: ProcessInfo, lines: dict[int, _Line]) -> None:
        self.place = place
        self._lines = lines
        self._leaving = threading.Event()
        self._ready = threading.Semaphore(0)
        self._ending = threading.Lock()

    @classmethod
    def meet(cls, place: ProcessInfo, timeout: float) -> "Peers":
        """Wait until all processes are there.

        Raises:
          RestartError: some did not come within `timeout` seconds; all that came are told which.
          UserError: two processes claim one place, or not all count alike.
        """
        deadline = time.monotonic() + timeout
        if place.index == 0:
            return _call_roll(place, deadline, timeout)
        return _answer_roll(place, deadline, timeout)

    def watch(self) -> None:
        """From now on end this process, with a sentence, when another is lost or has failed."""
        for index, line in self._lines.items():
            threading.Thread(target=self._listen, args=(index, line), name=f"process {index}", daemon=True).start()

    def _listen(self, index: int, line: _Line) -> None:
        while self._heed(index, line.receive()):
            pass

    def _heed(self, index: int, message: Mapping[str, Any] | None) -> bool:
        """Do what a message asks for; False after the last one of a process."""
        if self._leaving.is_set() or (message and "leave" in message):
            return False
        if message is None:
            reason = f"{self.place.name(index)} ended without a word: its log says why; the same command resumes"
            self._end(reason, errors.RESTART)
        if "end" in message:
            self._end(str(message["end"]), int(message["code"]))
        if "ready" in message:
            self._ready.release()
        return True

    def announce_ready(self) -> None:
        """Process 0: let the others return from one `wait_until_ready`."""
        for line in self._lines.values():
            line.send(ready=True)

    def wait_until_ready(self) -> None:
        """Other processes: wait for process 0 to announce."""
        self._ready.acquire()

    def leave(self) -> None:
        """The work is done: part without alarm."""
        self._leaving.set()
        for line in self._lines.values():
            line.send(leave=True)

    def fail(self, sentence: str, code: int) -> NoReturn:
        """End this process with a sentence and an exit code, and all others too; they are told whose sentence it is."""
        self._end(sentence, code, told=f"{self.place.name(self.place.index)}: {sentence}")

    def _end(self, sentence: str, code: int, *, told: str | None = None) -> NoReturn:
        # Several threads may come here: the process ends under the others.
        self._ending.acquire()
        self._leaving.set()
        for line in self._lines.values():
            line.send(end=told or sentence, code=code)
        sys.stdout.flush()
        print(f"error: {sentence}", file=sys.stderr, flush=True)
        if self.place.index == 0:
            # JAX's service ends with process 0; the others shall hear the reason first.
            time.sleep(0.5)
        os._exit(code)


def _call_roll(place: ProcessInfo, deadline: float, timeout: float) -> Peers:
    """Process 0: gather the others."""
    lines: dict[int, _Line] = {}
    hosts = [*place.hosts, *[""] * (place.count - len(place.hosts))]
    hosts[0] = hosts[0] or socket.gethostname()
    report = deadline - timeout + REPORT_SECONDS
    with _listen(int(place.coordinator.rpartition(":")[2])) as server:
        while len(lines) < place.count - 1:
            until = min(report, deadline)
            try:
                server.settimeout(max(until - time.monotonic(), 0.01))
                line = _Line(server.accept()[0])
            except TimeoutError:
                if until == deadline:
                    _give_up(place, lines, timeout)
                report = deadline
                print(f"waiting up to {timeout:.0f} s for {_missing(place, lines)}", file=sys.stderr, flush=True)
                continue
            except OSError:
                continue
            if problem := _note(place, lines, hosts, line):
                _refuse(server, [*lines.values(), line], problem, place.count)
    for line in lines.values():
        line.send(hosts=hosts)
    return Peers(dataclasses.replace(place, hosts=hosts), lines)


def _listen(port: int) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise errors.UserError(
            f"process 0 cannot listen on port {port} ({error.strerror}): is another run using it? Choose another port"
        ) from error


def _note(place: ProcessInfo, lines: dict[int, _Line], hosts: list[str], line: _Line) -> str | None:
    """Enter a newcomer, or say what is wrong with its place; a stranger is sent away."""
    message = line.receive(PATIENCE_SECONDS) or {}
    index, count = message.get("index"), message.get("count")
    if not isinstance(index, int) or not isinstance(count, int):
        line.close()
        return None
    host = str(message.get("host", ""))
    if count != place.count or not 0 < index < place.count:
        said = f"process {index} ({host}) says that there are {count} processes"
        return f"{said}, process 0 that there are {place.count}: start all with the same number"
    if index in lines:
        return f"two processes say that they are process {index} (on {hosts[index]} and {host}): number them apart"
    lines[index], hosts[index] = line, hosts[index] or host
    return None


def _refuse(server: socket.socket, lines: list[_Line], problem: str, count: int) -> NoReturn:
    """Tell everybody what is wrong, for a while also those that are still on their way."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    for line in lines:
        line.send(end=problem, code=errors.MISTAKE)
    with contextlib.suppress(TimeoutError):
        for _ in range(count - 1 - len(lines)):
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            late = _Line(server.accept()[0])
            late.receive(PATIENCE_SECONDS)
            late.send(end=problem, code=errors.MISTAKE)
    raise errors.UserError(problem)


def _missing(place: ProcessInfo, lines: Mapping[int, _Line]) -> str:
    names = [place.name(index) for index in range(1, place.count) if index not in lines]
    return f"{', '.join(names)} of {place.count}"


def _give_up(place: ProcessInfo, lines: Mapping[int, _Line], timeout: float) -> NoReturn:
    sentence = (
        f"{_missing(place, lines)} did not come to {place.coordinator} within {timeout:.0f} s: look at the logs there, "
        "or whether they were started and can reach that address; then start all again"
    )
    for line in lines.values():
        line.send(end=sentence, code=errors.RESTART)
    raise errors.RestartError(sentence)


def _answer_roll(place: ProcessInfo, deadline: float, timeout: float) -> Peers:
    """Another process: find process 0, and wait with it for the rest."""
    host, _, port = place.coordinator.rpartition(":")
    while True:
        try:
            connection = socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE_SECONDS)
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise errors.RestartError(
                    f"{place.name(0)} did not answer at {place.coordinator} within {timeout:.0f} s ({error}): look at "
                    "its log, or whether it was started and can be reached there; then start all again"
                ) from error
            time.sleep(RETRY_SECONDS)
    line = _Line(connection)
    line.send(index=place.index, count=place.count, host=socket.gethostname())
    # Process 0 may have begun to wait later than this one.
    message = line.receive(timeout + PATIENCE_SECONDS)
    if message is None:
        raise errors.RestartError(f"{place.name(0)} at {place.coordinator} ended before all had come: look at its log")
    if "end" in message:
        raise (errors.UserError if message["code"] == errors.MISTAKE else errors.RestartError)(message["end"])
    return Peers(dataclasses.replace(place, hosts=message["hosts"]), {0: line})
