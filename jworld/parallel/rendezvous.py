"""Process rendezvous and failure detection over TCP: reports missing and lost processes and broadcasts fatal errors.

JAX's own service waits for missing processes without naming them. When a process dies, it ends the others with a stack
trace after some time. Here process 0 accepts the others on the coordinator's port before JAX uses that port. The
connections stay open: the operating system closes those of a process that dies, whatever the cause.

Messages are JSON objects, one per line.
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
#: Missing processes are reported after this time, even if the wait continues.
REPORT_SECONDS = 60.0
#: Time limit for an unrelated client on the port, and for the last message of a process.
REPLY_SECONDS = 5.0
#: A host that disappeared is detected after idle + count * interval seconds.
KEEPALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 4}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessInfo:
    """Index of this process in a run, and the run's size and addresses.

    Attributes:
      coordinator: "host:port" of process 0.
      count: number of processes.
      index: index of this process, from 0.
      local_devices: the only devices that this process uses; None for all devices of its host.
      hosts: host name of each process where the environment provides it, else "".
    """

    coordinator: str
    count: int
    index: int
    local_devices: Sequence[int] | None = None
    hosts: Sequence[str] = ()

    def name(self, index: int) -> str:
        """Return a process's name for messages."""
        host = self.hosts[index] if index < len(self.hosts) else ""
        return f"process {index}" + (f" ({host})" if host else "")


class _Channel:
    """A connection that sends and receives messages."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._received = b""
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if hasattr(socket, name):  # Linux's names
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(self, **message: Any) -> None:
        """Send a message. A closed connection is not an error here: `receive` reports it."""
        with contextlib.suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, timeout: float | None = None) -> dict[str, Any] | None:
        """Return the next message; None at the end of the connection or for an invalid message."""
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
    """Connections between the processes of a run: process 0 is connected to every other process."""

    def __init__(self, process: ProcessInfo, channels: dict[int, _Channel]) -> None:
        self.process = process
        self._channels = channels
        self._leaving = threading.Event()
        self._ready = threading.Semaphore(0)
        self._ending = threading.Lock()

    @classmethod
    def connect(cls, process: ProcessInfo, timeout: float) -> "Peers":
        """Wait until all processes are connected.

        Raises:
          RestartError: some did not connect within `timeout` seconds; all connected processes receive the list.
          UserError: two processes have the same index, or their counts differ.
        """
        deadline = time.monotonic() + timeout
        if process.index == 0:
            return _accept_all(process, deadline, timeout)
        return _connect_to_first(process, deadline, timeout)

    def watch(self) -> None:
        """End this process with a message as soon as another one is lost or has failed."""
        for index, channel in self._channels.items():
            threading.Thread(target=self._listen, args=(index, channel), name=f"process {index}", daemon=True).start()

    def _listen(self, index: int, channel: _Channel) -> None:
        while self._handle(index, channel.receive()):
            pass

    def _handle(self, index: int, message: Mapping[str, Any] | None) -> bool:
        """Handle a message; return False after the last one of a process."""
        if self._leaving.is_set() or (message and "leave" in message):
            return False
        if message is None:
            reason = f"{self.process.name(index)} ended unexpectedly: read its log; the same command resumes"
            self._end(reason, errors.RESTART)
        if "end" in message:
            self._end(str(message["end"]), int(message["code"]))
        if "ready" in message:
            self._ready.release()
        return True

    def announce_ready(self) -> None:
        """Release one `wait_until_ready` of every other process; only process 0 calls this."""
        for channel in self._channels.values():
            channel.send(ready=True)

    def wait_until_ready(self) -> None:
        """Wait until process 0 calls `announce_ready`."""
        self._ready.acquire()

    def leave(self) -> None:
        """Disconnect at the normal end of the run, so that the others do not report a lost process."""
        self._leaving.set()
        for channel in self._channels.values():
            channel.send(leave=True)

    def fail(self, message: str, code: int) -> NoReturn:
        """End all processes of the run with a message and an exit code; the others also print this process's name."""
        self._end(message, code, for_others=f"{self.process.name(self.process.index)}: {message}")

    def _end(self, message: str, code: int, *, for_others: str | None = None) -> NoReturn:
        # Never released: only one of several threads may end the process.
        self._ending.acquire()
        self._leaving.set()
        for channel in self._channels.values():
            channel.send(end=for_others or message, code=code)
        sys.stdout.flush()
        print(f"error: {message}", file=sys.stderr, flush=True)
        if self.process.index == 0:
            # JAX's service ends with process 0; the others must receive the reason first.
            time.sleep(0.5)
        os._exit(code)


def _accept_all(process: ProcessInfo, deadline: float, timeout: float) -> Peers:
    """Accept the connections of all other processes, in process 0."""
    channels: dict[int, _Channel] = {}
    hosts = [*process.hosts, *[""] * (process.count - len(process.hosts))]
    hosts[0] = hosts[0] or socket.gethostname()
    report = deadline - timeout + REPORT_SECONDS
    with _listen(int(process.coordinator.rpartition(":")[2])) as server:
        while len(channels) < process.count - 1:
            until = min(report, deadline)
            try:
                server.settimeout(max(until - time.monotonic(), 0.01))
                channel = _Channel(server.accept()[0])
            except TimeoutError:
                if until == deadline:
                    _give_up(process, channels, timeout)
                report = deadline
                print(f"waiting up to {timeout:.0f} s for {_missing(process, channels)}", file=sys.stderr, flush=True)
                continue
            except OSError:
                continue
            if problem := _admit(process, channels, hosts, channel):
                _refuse(server, [*channels.values(), channel], problem, process.count)
    for channel in channels.values():
        channel.send(hosts=hosts)
    return Peers(dataclasses.replace(process, hosts=hosts), channels)


def _listen(port: int) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise errors.UserError(
            f"process 0 cannot listen on port {port} ({error.strerror}): if another run uses it, choose another port"
        ) from error


def _admit(process: ProcessInfo, channels: dict[int, _Channel], hosts: list[str], channel: _Channel) -> str | None:
    """Register a new process, or return the conflict in its index or count; unrelated clients are disconnected."""
    message = channel.receive(REPLY_SECONDS) or {}
    index, count = message.get("index"), message.get("count")
    if not isinstance(index, int) or not isinstance(count, int):
        channel.close()
        return None
    host = str(message.get("host", ""))
    if count != process.count or not 0 < index < process.count:
        found = f"process {index} ({host}) was started with --num-processes={count}"
        return f"{found}, process 0 with {process.count}: start all with the same number"
    if index in channels:
        return (
            f"two processes were started as process {index} (on {hosts[index]} and {host}): "
            "give each process its own --process-id"
        )
    channels[index], hosts[index] = channel, hosts[index] or host
    return None


def _refuse(server: socket.socket, channels: list[_Channel], problem: str, count: int) -> NoReturn:
    """Send the error to all connected processes, and for some seconds to those that connect later."""
    deadline = time.monotonic() + REPLY_SECONDS
    for channel in channels:
        channel.send(end=problem, code=errors.MISTAKE)
    with contextlib.suppress(TimeoutError):
        for _ in range(count - 1 - len(channels)):
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            late = _Channel(server.accept()[0])
            late.receive(REPLY_SECONDS)
            late.send(end=problem, code=errors.MISTAKE)
    raise errors.UserError(problem)


def _missing(process: ProcessInfo, channels: Mapping[int, _Channel]) -> str:
    names = [process.name(index) for index in range(1, process.count) if index not in channels]
    return f"{', '.join(names)} of {process.count}"


def _give_up(process: ProcessInfo, channels: Mapping[int, _Channel], timeout: float) -> NoReturn:
    message = (
        f"{_missing(process, channels)} did not connect to {process.coordinator} within {timeout:.0f} s: read their "
        "logs, check that they were started and can reach that address, and start all again"
    )
    for channel in channels.values():
        channel.send(end=message, code=errors.RESTART)
    raise errors.RestartError(message)


def _connect_to_first(process: ProcessInfo, deadline: float, timeout: float) -> Peers:
    """Connect to process 0, and wait until all other processes are connected too."""
    host, _, port = process.coordinator.rpartition(":")
    while True:
        try:
            connection = socket.create_connection((host.strip("[]"), int(port)), timeout=REPLY_SECONDS)
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise errors.RestartError(
                    f"{process.name(0)} did not answer at {process.coordinator} within {timeout:.0f} s ({error}): read "
                    "its log, check that it was started and can be reached there, and start all again"
                ) from error
            time.sleep(RETRY_SECONDS)
    channel = _Channel(connection)
    channel.send(index=process.index, count=process.count, host=socket.gethostname())
    # Process 0 may have started its wait later than this process.
    message = channel.receive(timeout + REPLY_SECONDS)
    if message is None:
        raise errors.RestartError(
            f"{process.name(0)} at {process.coordinator} ended before all processes were connected: read its log and "
            "start all again"
        )
    if "end" in message:
        raise (errors.UserError if message["code"] == errors.MISTAKE else errors.RestartError)(message["end"])
    return Peers(dataclasses.replace(process, hosts=message["hosts"]), {0: channel})
