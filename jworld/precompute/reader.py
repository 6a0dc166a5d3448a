"""Prefetching of clips by threads, since decoding and resizing take longer than most encoders."""

import concurrent.futures
import queue
import threading
import types
from collections.abc import Iterator, Sequence

from jworld.data.inputs import clips, items

_POLL = 0.1  # seconds


class ReadAhead:
    """Reader of `threads` items at a time, in order and at most two clips ahead per item, as a context manager.

    with ReadAhead(items, cut, threads=4) as reader:
        for position in range(len(items)):
            for clip in reader.read(position): ...
    """

    def __init__(self, listed: Sequence[items.Item], cut: clips.CutConfig, *, threads: int) -> None:
        self._items, self._cut, self._threads = listed, cut, threads
        self._pool = concurrent.futures.ThreadPoolExecutor(threads)
        self._stop = threading.Event()
        self._queues: list[queue.Queue[clips.Clip | Exception | None]] = []

    def __enter__(self) -> "ReadAhead":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def read(self, position: int) -> Iterator[clips.Clip]:
        """Yield the clips of one item, or raise its error; must be called once for every position, in order."""
        for item in self._items[len(self._queues) : position + self._threads]:
            self._queues.append(queue.Queue(maxsize=1))
            self._pool.submit(self._produce, item, self._queues[-1])
        while (found := self._queues[position].get()) is not None:
            if isinstance(found, Exception):
                raise found
            yield found

    def _produce(self, item: items.Item, target: queue.Queue[clips.Clip | Exception | None]) -> None:
        last = None
        try:
            for clip in clips.read_clips(item, self._cut):
                if not self._put(target, clip):
                    return
                del clip
        except Exception as error:
            last = error
        self._put(target, last)

    def _put(self, target: queue.Queue[clips.Clip | Exception | None], value: clips.Clip | Exception | None) -> bool:
        """Put a value into the queue; return False if the reader was closed."""
        while not self._stop.is_set():
            try:
                target.put(value, timeout=_POLL)
            except queue.Full:
                continue
            return True
        return False
