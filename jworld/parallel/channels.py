"""Messages between two processes over TCP: JSON objects, one per line."""

import contextlib
import json
import socket
import threading
import time
from typing import Any

#: A host that disappeared is detected after idle + count * interval seconds.
KEEPALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 4}
#: Bytes of a message, at most: of a client that has proved nothing yet, and of a process of the run.
UNPROVEN_BYTES, MAX_BYTES = 1 << 12, 1 << 22


class Channel:
    """A connection that sends and receives messages. Several threads may send, one may receive."""

    def __init__(self, connection: socket.socket, address: str = "") -> None:
        """Take over a connection; `address` is that of the other end, for messages."""
        self.connection = connection
        self.address = address.removeprefix("::ffff:")
        self.max_bytes = UNPROVEN_BYTES
        #: Time of the last message, by `time.monotonic`.
        self.heard = time.monotonic()
        self._received = b""
        self._sending = threading.Lock()
        if connection.family == socket.AF_UNIX:
            return
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if hasattr(socket, name):  # Linux's names
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(self, **message: Any) -> None:
        """Send a message. A closed connection is not an error here: `receive` reports it."""
        with self._sending, contextlib.suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, timeout: float) -> dict[str, Any] | None:
        """Return the next message; None at the end of the connection or for an invalid message.

        Raises:
          TimeoutError: the whole message did not arrive within `timeout` seconds, however many of its bytes did.
        """
        deadline = time.monotonic() + timeout
        try:
            while b"\n" not in self._received:
                # Past the deadline, what has already arrived is still read, but for less than a whole message.
                late = time.monotonic() > deadline
                self.connection.settimeout(max(deadline - time.monotonic(), 0.001))
                part = self.connection.recv(1 << 16)
                if not part or len(self._received) + len(part) > self.max_bytes:
                    return None
                self._received += part
                if late and b"\n" not in part:
                    raise TimeoutError
            first, _, self._received = self._received.partition(b"\n")
            message = json.loads(first)
        except TimeoutError:
            raise
        except (OSError, ValueError, RecursionError):
            return None
        self.heard = time.monotonic()
        return message if isinstance(message, dict) else None

    def take(self, size: int) -> bytes:
        """Return up to `size` bytes that arrived after the last message, for a connection that then sends a file."""
        first, self._received = self._received[:size], self._received[size:]
        return first

    def close(self) -> None:
        """Close the connection, so that a thread that receives from it ends."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()
