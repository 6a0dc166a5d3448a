"""Roll call of the processes of a run: each connects to process 0, proves that it belongs to the run, and agrees.

A process proves that it has the token in JWORLD_TOKEN by a keyed hash (HMAC-SHA256) of random numbers of both ends, and
so does process 0; the token itself is never sent. Other clients are disconnected after a deadline. Then processes
compare what must be equal in all of them.
"""

import contextlib
import dataclasses
import hmac
import os
import queue
import secrets
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from jworld.parallel import agreement
from jworld.parallel.channels import MAX_BYTES, Channel
from jworld.utils import errors

#: Variable with the run's secret.
TOKEN = "JWORLD_TOKEN"
#: Variable of JAX with the address, host:port, on which process 0 listens.
BIND = "JAX_COORDINATOR_BIND_ADDRESS"
RETRY_SECONDS = 0.2
#: Missing processes are reported after this time, even if the wait continues.
REPORT_SECONDS = 60.0
#: Time limit of a client to prove that it belongs to the run.
REPLY_SECONDS = 5.0
#: Clients that have proved nothing yet, at most; and lines about dropped ones, at most.
_UNPROVEN, _REPORTED = 256, 20


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Arrival:
    """A process that has proved that it belongs to the run."""

    channel: Channel
    index: int
    count: int
    host: str
    facts: agreement.Facts


class _Reception(contextlib.AbstractContextManager["_Reception"]):
    """The port of process 0: every client is greeted in a thread of its own, so that none delays another."""

    def __init__(self, port: int, token: str) -> None:
        self.arrivals: queue.Queue[_Arrival] = queue.Queue()
        self._token = token
        self._server = listen(port, bind_host())
        self._places = threading.Semaphore(_UNPROVEN)
        self._dropped = 0
        self._open = True
        self._printing = threading.Lock()
        self._thread = threading.Thread(target=self._accept, name="roll call", daemon=True)
        self._thread.start()

    def __exit__(self, *error: Any) -> None:
        self._open = False
        # Wakes the thread, which a closed socket would not.
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._server.close()

    def _accept(self) -> None:
        while self._open:
            try:
                connection, address = self._server.accept()
                channel = Channel(connection, str(address[0]))
            except OSError:
                time.sleep(0.01)
                continue
            if self._places.acquire(blocking=False):
                threading.Thread(target=self._greet, args=(channel,), daemon=True).start()
            else:
                self._drop(channel, f"{_UNPROVEN} others have not proved yet that they belong to this run")

    def _greet(self, channel: Channel) -> None:
        deadline = time.monotonic() + REPLY_SECONDS
        try:
            arrival, problem = _admit(channel, self._token, deadline)
        except TimeoutError:
            arrival, problem = None, f"it did not prove within {REPLY_SECONDS:g} s that it belongs to this run"
        finally:
            self._places.release()
        if arrival is None:
            self._drop(channel, problem)
        else:
            self.arrivals.put(arrival)

    def _drop(self, channel: Channel, problem: str) -> None:
        with self._printing:
            self._dropped += 1
            if self._dropped <= _REPORTED:
                rest = "; further ones are not reported" if self._dropped == _REPORTED else ""
                print(f"dropped a connection from {channel.address}: {problem}{rest}", file=sys.stderr, flush=True)
        channel.close()


def token() -> str:
    """Return the run's secret from the environment; "" without one."""
    return os.environ.get(TOKEN, "")


def proof_of(secret: str, *parts: Any) -> str:
    """Return a keyed hash of some parts, which proves that its maker has the secret."""
    return hmac.new(secret.encode(), "\n".join(map(str, parts)).encode(), "sha256").hexdigest()


def _admit(channel: Channel, secret: str, deadline: float) -> tuple[_Arrival | None, str]:
    """Return a client as an arrival, or None and the reason against it."""
    own = secrets.token_hex(16)
    channel.send(nonce=own)
    greeting = channel.receive(deadline - time.monotonic()) or {}
    index, count, proof, nonce = (greeting.get(key) for key in ("index", "count", "proof", "nonce"))
    if type(index) is not int or type(count) is not int or not isinstance(proof, str):
        return None, "it is not a process of a run"
    if not hmac.compare_digest(proof.encode(), proof_of(secret, "process", own, nonce, index, count).encode()):
        channel.send(refused=True)
        return None, f"it came as process {index} without the {TOKEN} of this run"
    channel.send(proof=proof_of(secret, "process 0", nonce, own))
    channel.max_bytes = MAX_BYTES
    facts = (channel.receive(deadline - time.monotonic()) or {}).get("facts")
    if not isinstance(facts, dict):
        return None, f"it came as process {index} and left"
    channel.send(admitted=True)
    host = str(greeting.get("host", ""))
    return _Arrival(channel=channel, index=index, count=count, host=host, facts=facts), ""


def bind_host() -> str:
    """Return the host of the address on which process 0 listens; "" for all network interfaces."""
    return os.environ.get(BIND, "").rpartition(":")[0].strip("[]")


def listen(port: int, host: str) -> socket.socket:
    """Listen on a port, 0 for any free one, of the network interface of `host`, "" for all interfaces.

    Raises:
      UserError: the port is in use, or the host is not an address of this machine.
    """
    try:
        if host:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            return socket.create_server((host, port), family=family)
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise errors.UserError(
            f"process 0 cannot listen on port {port}{f' of {host}' if host else ''} ({error.strerror}): if another run "
            f"uses it, choose another port"
        ) from error


class _RollCall:
    """The processes that have connected to process 0 so far."""

    def __init__(self, process: ProcessInfo, facts: agreement.Facts) -> None:
        self.process = process
        self.hosts = [*process.hosts, *[""] * (process.count - len(process.hosts))]
        self.hosts[0] = self.hosts[0] or socket.gethostname()
        self.channels: dict[int, Channel] = {}
        self._facts = {0: facts}

    def missing(self) -> str:
        names = [self.process.name(index) for index in range(1, self.process.count) if index not in self.channels]
        return f"{', '.join(names)} of {self.process.count}"

    def register(self, arrival: _Arrival) -> str:
        """Register a process, or return the conflict in its index or count."""
        index, count, host = arrival.index, self.process.count, arrival.host
        if arrival.count != count or not 0 < index < count:
            found = f"process {index} ({host}) was started with --num-processes={arrival.count}"
            return f"{found}, process 0 with {count}: start all with the same number"
        if index in self.channels:
            return (
                f"two processes were started as process {index} (on {self.hosts[index]} and {host}): "
                "give each process its own --process-id"
            )
        self.channels[index], self.hosts[index] = arrival.channel, self.hosts[index] or host
        self._facts[index] = arrival.facts
        return ""

    def differences(self) -> str:
        """Return how the processes differ, "" if they agree."""
        process = dataclasses.replace(self.process, hosts=self.hosts)
        return agreement.differences([self._facts[index] for index in range(process.count)], process.name)


def accept_all(
    process: ProcessInfo, facts: agreement.Facts, timeout: float
) -> tuple[dict[int, Channel], Sequence[str]]:
    """Accept all other processes, in process 0; return their connections and the names of all hosts.

    Raises:
      RestartError: some did not connect within `timeout` seconds; the others receive the list.
      UserError: two have the same index, their counts differ, or they differ in `facts`; all receive the sentence.
    """
    deadline, call = time.monotonic() + timeout, _RollCall(process, facts)
    report = deadline - timeout + REPORT_SECONDS
    with _Reception(int(process.coordinator.rpartition(":")[2]), token()) as reception:
        while len(call.channels) < process.count - 1:
            until = min(report, deadline)
            try:
                arrival = reception.arrivals.get(timeout=max(until - time.monotonic(), 0.01))
            except queue.Empty:
                if until == deadline:
                    _give_up(call, timeout)
                report = deadline
                print(f"waiting up to {timeout:.0f} s for {call.missing()}", file=sys.stderr, flush=True)
                continue
            if problem := call.register(arrival):
                _refuse(reception, [*call.channels.values(), arrival.channel], problem, process.count)
        if problem := call.differences():
            _refuse(reception, list(call.channels.values()), problem, process.count)
    for channel in call.channels.values():
        channel.send(hosts=call.hosts)
    return call.channels, call.hosts


def _refuse(reception: _Reception, channels: list[Channel], problem: str, count: int) -> NoReturn:
    """Send the error to all connected processes, and for some seconds to those that connect later."""
    deadline = time.monotonic() + REPLY_SECONDS
    for channel in channels:
        channel.send(end=problem, code=errors.MISTAKE)
    with contextlib.suppress(queue.Empty):
        for _ in range(count - 1 - len(channels)):
            late = reception.arrivals.get(timeout=max(deadline - time.monotonic(), 0.01))
            late.channel.send(end=problem, code=errors.MISTAKE)
    raise errors.UserError(problem)


def _give_up(call: _RollCall, timeout: float) -> NoReturn:
    message = (
        f"{call.missing()} did not connect to {call.process.coordinator} within {timeout:.0f} s: read their "
        "logs, check that they were started and can reach that address, and start all again"
    )
    for channel in call.channels.values():
        channel.send(end=message, code=errors.RESTART)
    raise errors.RestartError(message)


def connect_to_first(
    process: ProcessInfo, facts: agreement.Facts, timeout: float
) -> tuple[dict[int, Channel], Sequence[str]]:
    """Connect to process 0 and wait until all others have; return that connection and the names of all hosts.

    Raises:
      RestartError: process 0 did not answer within `timeout` seconds, or some process did not connect to it.
      UserError: process 0 refused this process, or found a conflict.
    """
    deadline = time.monotonic() + timeout
    while True:
        problem = "it closed the connection"
        try:
            channel = _open(process.coordinator)
            if _greet(process, facts, channel):
                break
            channel.close()
        except OSError as error:
            problem = str(error) or "no answer"
        if time.monotonic() > deadline:
            raise errors.RestartError(
                f"{process.name(0)} did not answer at {process.coordinator} within {timeout:.0f} s ({problem}): read "
                "its log, check that it was started and can be reached there, and start all again"
            )
        time.sleep(RETRY_SECONDS)
    # Process 0 may have started its wait later than this process.
    message: Mapping[str, Any] | None = None
    with contextlib.suppress(TimeoutError):
        message = channel.receive(timeout + REPLY_SECONDS)
    if message is None:
        raise errors.RestartError(
            f"{process.name(0)} at {process.coordinator} ended before all processes were connected: read its log and "
            "start all again"
        )
    if "end" in message:
        raise (errors.UserError if message["code"] == errors.MISTAKE else errors.RestartError)(message["end"])
    return {0: channel}, message["hosts"]


def _open(coordinator: str) -> Channel:
    host, _, port = coordinator.rpartition(":")
    return Channel(socket.create_connection((host.strip("[]"), int(port)), timeout=REPLY_SECONDS))


def _greet(process: ProcessInfo, facts: agreement.Facts, channel: Channel) -> bool:
    """Prove to process 0 that this process belongs to the run; return whether it proved the same and admitted this one.

    Raises:
      UserError: the tokens differ.
    """
    secret, own = token(), secrets.token_hex(16)
    nonce = (channel.receive(REPLY_SECONDS) or {}).get("nonce")
    if not isinstance(nonce, str):
        return False
    proof = proof_of(secret, "process", nonce, own, process.index, process.count)
    channel.send(index=process.index, count=process.count, host=socket.gethostname(), nonce=own, proof=proof)
    answer = channel.receive(REPLY_SECONDS) or {}
    if "refused" in answer:
        raise errors.UserError(
            f"{process.name(0)} at {process.coordinator} has another {TOKEN} than this process: give all processes of "
            "the run the same"
        )
    expected = proof_of(secret, "process 0", own, nonce)
    if not hmac.compare_digest(str(answer.get("proof", "")).encode(), expected.encode()):
        return False
    channel.max_bytes = MAX_BYTES
    channel.send(facts=facts)
    # Longer than process 0 waits for the facts: it never admits a process that has given up.
    return "admitted" in (channel.receive(3 * REPLY_SECONDS) or {})
