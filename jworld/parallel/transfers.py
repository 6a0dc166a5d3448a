"""Files sent between the processes of a run over TCP: a server in every process, and its clients.

Both ends of a connection prove that they have the run's secret, by keyed hashes of random numbers as in `roll_call`. A
request names an item and a seat, never a path. The content is sent as it is; the file itself must have a checksum.
"""

import contextlib
import hmac
import pathlib
import re
import secrets
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from jworld.parallel import roll_call
from jworld.parallel.channels import MAX_BYTES, Channel

#: Seconds to connect and for each answer, and without any byte of a file.
REPLY_SECONDS, SILENCE_SECONDS = 20.0, 60.0
#: Clients that are served at the same time, at most.
_CLIENTS = 64
_PART = 1 << 20
_ITEM = re.compile(r"[a-z0-9]{1,32}", re.ASCII)


class TransferError(Exception):
    """A file that could not be sent or received, with the reason."""


class Store(Protocol):
    """Files by item and seat, as a server offers and receives them."""

    def find(self, item: str, seat: int) -> pathlib.Path | None:
        """Return a complete file."""

    def fingerprint(self, item: str, seat: int) -> str:
        """Return a short text that differs between files of different content; "" without the file."""

    def receive(self, item: str, seat: int, size: int, fill: Callable[[memoryview], None]) -> str:
        """Store a file of `size` bytes that `fill` reads part by part; return the reason against it, "" if stored."""


class Server:
    """A port at which the other processes of a run store and fetch files."""

    def __init__(self, host: str, secret: str, store: Store) -> None:
        """Listen on any free port of the interface of `host`, or on all interfaces for "".

        Raises:
          UserError: the port cannot be opened.
        """
        self._secret, self._store = secret, store
        self._socket = roll_call.listen(0, host)
        self.port = int(self._socket.getsockname()[1])
        self._places = threading.Semaphore(_CLIENTS)
        self._open = True
        threading.Thread(target=self._accept, name="copies", daemon=True).start()

    def close(self) -> None:
        """Accept no more clients."""
        self._open = False
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        while self._open:
            try:
                connection, address = self._socket.accept()
            except OSError:
                return
            if self._places.acquire(blocking=False):
                channel = Channel(connection, str(address[0]))
                threading.Thread(target=self._serve, args=(channel,), name="copy", daemon=True).start()
            else:
                connection.close()

    def _serve(self, channel: Channel) -> None:
        try:
            # The client notices a failure and reports it.
            with contextlib.suppress(OSError, TransferError):
                if _admit(channel, self._secret):
                    self._answer(channel, channel.receive(REPLY_SECONDS) or {})
        finally:
            channel.close()
            self._places.release()

    def _answer(self, channel: Channel, request: Mapping[str, Any]) -> None:
        item, seat = request.get("item"), request.get("seat")
        if not isinstance(item, str) or not _ITEM.fullmatch(item) or type(seat) is not int or seat < 0:
            channel.send(refused="the request is not valid")
        elif request.get("do") == "get":
            path = self._store.find(item, seat)
            if path is None:
                channel.send(refused="it does not have that file")
            else:
                channel.send(bytes=path.stat().st_size)
                _send_file(channel, path)
        elif request.get("do") == "put" and type(size := request.get("bytes")) is int:
            if request.get("fingerprint") == self._store.fingerprint(item, seat):
                channel.send(stored=True)
                return
            channel.send(go=True)
            problem = self._store.receive(item, seat, size, lambda view: _fill(channel, view))
            channel.send(**({"refused": problem} if problem else {"stored": True}))


def put(address: tuple[str, int], secret: str, item: str, seat: int, path: pathlib.Path, fingerprint: str) -> None:
    """Store a copy of a file in another process, unless it has that already.

    Raises:
      TransferError: it was not stored.
    """
    with _Client(address, secret) as channel:
        size = path.stat().st_size
        channel.send(do="put", item=item, seat=seat, bytes=size, fingerprint=fingerprint)
        if "stored" in _reply(channel):
            return
        _send_file(channel, path)
        # The other end verifies the whole file.
        _reply(channel, SILENCE_SECONDS + size / 50e6)


def get(address: tuple[str, int], secret: str, item: str, seat: int, store: Store) -> None:
    """Fetch a file from another process into `store`.

    Raises:
      TransferError: it was not received, or `store` refused it.
    """
    with _Client(address, secret) as channel:
        channel.send(do="get", item=item, seat=seat)
        size = _reply(channel).get("bytes")
        if type(size) is not int:
            raise TransferError("it sent no size")
        if problem := store.receive(item, seat, size, lambda view: _fill(channel, view)):
            raise TransferError(problem)


class _Client:
    """A connection to a server whose both ends have proved that they belong to the run."""

    def __init__(self, address: tuple[str, int], secret: str) -> None:
        try:
            self._channel = Channel(socket.create_connection(address, timeout=REPLY_SECONDS))
        except OSError as error:
            reason = error.strerror or str(error) or "no answer"
            raise TransferError(f"no connection to {address[0]}:{address[1]} ({reason})") from error
        if not _greet(self._channel, secret):
            self._channel.close()
            raise TransferError(f"{address[0]}:{address[1]} did not prove that it belongs to this run")

    def __enter__(self) -> Channel:
        return self._channel

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._channel.close()
        if isinstance(error, OSError):
            raise TransferError(f"the connection failed ({error.strerror or str(error) or 'no answer'})") from error


def _admit(channel: Channel, secret: str) -> bool:
    own = secrets.token_hex(16)
    channel.send(nonce=own)
    greeting = channel.receive(REPLY_SECONDS) or {}
    nonce, proof = str(greeting.get("nonce")), str(greeting.get("proof"))
    if not hmac.compare_digest(proof.encode(), roll_call.proof_of(secret, "client", own, nonce).encode()):
        return False
    channel.send(proof=roll_call.proof_of(secret, "server", nonce, own))
    channel.max_bytes = MAX_BYTES
    return True


def _greet(channel: Channel, secret: str) -> bool:
    try:
        nonce, own = (channel.receive(REPLY_SECONDS) or {}).get("nonce"), secrets.token_hex(16)
        channel.send(nonce=own, proof=roll_call.proof_of(secret, "client", nonce, own))
        proof = str((channel.receive(REPLY_SECONDS) or {}).get("proof"))
    except TimeoutError:
        return False
    channel.max_bytes = MAX_BYTES
    return hmac.compare_digest(proof.encode(), roll_call.proof_of(secret, "server", own, nonce).encode())


def _reply(channel: Channel, timeout: float = REPLY_SECONDS) -> dict[str, Any]:
    answer = channel.receive(timeout)
    if answer is None:
        raise TransferError("the connection was closed")
    if "refused" in answer:
        raise TransferError(str(answer["refused"]))
    return answer


def _send_file(channel: Channel, path: pathlib.Path) -> None:
    channel.connection.settimeout(SILENCE_SECONDS)
    with path.open("rb") as file:
        channel.connection.sendfile(file)


def _fill(channel: Channel, view: memoryview) -> None:
    """Receive exactly as many bytes as `view` has."""
    channel.connection.settimeout(SILENCE_SECONDS)
    # What arrived together with the last message comes first.
    first = channel.take(len(view))
    view[: len(first)] = first
    done = len(first)
    while done < len(view):
        count = channel.connection.recv_into(view[done : done + _PART])
        if not count:
            raise TransferError("the connection was closed")
        done += count
