"""Failure detection between the processes of a run: reports lost and hung processes and broadcasts fatal errors.

JAX's own service waits for missing processes without naming them. When a process dies or hangs, it ends the others with
a stack trace after some time. Here process 0 accepts the others on the coordinator's port before JAX uses that port
(`roll_call`). The connections stay open: the operating system closes those of a process that dies, whatever the cause,
and a process that hangs sends nothing.
"""

import dataclasses
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, NoReturn

from jworld.parallel import agreement, roll_call
from jworld.parallel.channels import Channel
from jworld.utils import errors

#: Seconds between two signs of life.
BEAT_SECONDS = 5.0
#: A process that gave no sign of life for this time hangs.
HANG_SECONDS = 120.0
#: Seconds for the last message of a process that ended, after an error that may be a consequence.
CAUSE_SECONDS = 5.0
#: Errors of JAX when other processes do not take part in a computation, or its service is gone.
_COMMUNICATION = re.compile(
    r"gloo|nccl|deadline_exceeded|deadline exceeded|unavailable|coordination|connection (closed|reset)|heartbeat",
    re.IGNORECASE,
)


def is_communication(error: BaseException) -> bool:
    """Return whether an error may come from a process that does not answer."""
    return isinstance(error, RuntimeError) and _COMMUNICATION.search(str(error)) is not None


class Peers:
    """Connections between the processes of a run: process 0 is connected to every other process."""

    def __init__(
        self, process: roll_call.ProcessInfo, channels: dict[int, Channel], *, hang_seconds: float = HANG_SECONDS
    ) -> None:
        self.process = process
        self._channels = channels
        self._hang_seconds = hang_seconds
        self._beat_seconds = min(BEAT_SECONDS, hang_seconds / 4)
        self._leaving = threading.Event()
        self._ready = threading.Semaphore(0)
        self._facts: queue.Queue[tuple[int, agreement.Facts]] = queue.Queue()
        self._shares: queue.Queue[tuple[int, Any]] = queue.Queue()
        self._ending = threading.Lock()

    @classmethod
    def connect(
        cls,
        process: roll_call.ProcessInfo,
        timeout: float,
        *,
        facts: agreement.Facts | None = None,
        hang_seconds: float = HANG_SECONDS,
    ) -> "Peers":
        """Wait until all processes are connected.

        Args:
          process: this process.
          timeout: seconds to wait.
          facts: what must be equal in all processes.
          hang_seconds: time without a sign of life after which a process hangs.

        Raises:
          RestartError: some did not connect within `timeout` seconds; all connected processes receive the list.
          UserError: two processes have the same index, their counts, facts or tokens differ.
        """
        meet = roll_call.accept_all if process.index == 0 else roll_call.connect_to_first
        channels, hosts = meet(process, facts or {}, timeout)
        return cls(dataclasses.replace(process, hosts=hosts), channels, hang_seconds=hang_seconds)

    def watch(self) -> None:
        """End this process with a message as soon as another one is lost, hangs or has failed."""
        for index, channel in self._channels.items():
            channel.heard = time.monotonic()
            threading.Thread(target=self._listen, args=(index, channel), name=f"process {index}", daemon=True).start()
        threading.Thread(target=self._beat, name="signs of life", daemon=True).start()

    def _beat(self) -> None:
        while not self._leaving.wait(self._beat_seconds):
            for channel in self._channels.values():
                channel.send(beat=True)

    def _listen(self, index: int, channel: Channel) -> None:
        more = True
        while more:
            began = time.monotonic()
            try:
                more = self._handle(index, channel.receive(self._hang_seconds))
            except TimeoutError:
                # The clock of a process that was stopped itself has run on: its peers' messages are already here.
                if time.monotonic() - began < self._hang_seconds + self._beat_seconds:
                    self._end_hung(index, channel)

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
        if "facts" in message:
            self._facts.put((index, message["facts"]))
        if "share" in message:
            self._shares.put((index, message["share"]))
        return True

    def _end_hung(self, index: int, channel: Channel) -> None:
        if not self._leaving.is_set():
            self._end(
                f"{self.process.name(index)} has given no sign of life for {time.monotonic() - channel.heard:.0f} s: "
                "it hangs or was stopped; end it, read its log, and run the same command again, which resumes",
                errors.RESTART,
            )

    def agree(self, facts: agreement.Facts) -> None:
        """Compare facts that become known after the start; all processes call this at the same point.

        Raises:
          UserError: they differ; only process 0 raises it, and `fail` then ends the others.
        """
        if self.process.index:
            self._channels[0].send(facts=facts)
            self.wait_until_ready()
            return
        found = {0: facts} | dict(self._facts.get() for _ in self._channels)
        if problem := agreement.differences([found[index] for index in sorted(found)], self.process.name):
            raise errors.UserError(problem)
        self.announce_ready()

    def share(self, value: Any) -> list[Any]:
        """Return the JSON values of all processes in their order; all processes call this at the same point."""
        if self.process.index:
            self._channels[0].send(share=value)
            everything: list[Any] = self._shares.get()[1]
            return everything
        found = {0: value} | dict(self._shares.get() for _ in self._channels)
        everything = [found[index] for index in sorted(found)]
        for channel in self._channels.values():
            channel.send(share=everything)
        return everything

    def address(self) -> str:
        """Return the address at which the other processes reach this one, that of its connection to process 0."""
        if self.process.index == 0:
            return self.process.coordinator.rpartition(":")[0].strip("[]")
        return str(self._channels[0].connection.getsockname()[0]).removeprefix("::ffff:")

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

    def find_cause(self, error: BaseException) -> None:
        """End this process with the cause of `error`, if that is another process; else return after some seconds.

        A computation that other processes do not take part in may fail before their silence is long enough by itself.
        """
        silence = min(3 * self._beat_seconds, self._hang_seconds)
        deadline = time.monotonic() + (self._hang_seconds if is_communication(error) else CAUSE_SECONDS)
        while time.monotonic() < deadline:
            for index, channel in self._channels.items():
                if is_communication(error) and time.monotonic() - channel.heard > silence:
                    self._end_hung(index, channel)
            time.sleep(self._beat_seconds / 10)

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
