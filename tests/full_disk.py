"""A disk that is full: this process and its children may write no file larger than some bytes."""

import contextlib
import resource
from collections.abc import Iterator


@contextlib.contextmanager
def after(size: int) -> Iterator[None]:
    """Refuse to write more than `size` bytes to a file, as a full disk does."""
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))
