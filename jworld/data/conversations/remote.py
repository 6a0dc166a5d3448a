"""Downloads of images and shards that a data set names by URL."""

import http.client
import pathlib
import time
import urllib.error
import urllib.request
from typing import BinaryIO

from jworld.utils import errors, files

#: Seconds without data after which a download fails, number of attempts, and seconds before the second one, which
#: double for each further one.
TIMEOUT, ATTEMPTS, PAUSE = 10.0, 3, 0.1
#: Bytes that are read at once.
_BLOCK = 1 << 20
_AGENT = "Mozilla/5.0 (compatible; jworld)"
#: Statuses of a server that may answer later.
_LATER = (408, 425, 429, 500, 502, 503, 504)


def is_url(name: object) -> bool:
    """Return whether a name is an http(s) URL."""
    return isinstance(name, str) and name.startswith(("http://", "https://"))


def fetch(url: str, path: pathlib.Path, *, limit: int) -> None:
    """Download a file of at most `limit` bytes, unless it is there; it is complete or absent.

    Raises:
      OSError: the server cannot be reached, refuses, or sends too much; the last reason of `ATTEMPTS`.
      UserError: the disk is full.
    """
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(ATTEMPTS):
        try:
            request = urllib.request.Request(url, headers={"User-Agent": _AGENT})
            with (
                urllib.request.urlopen(request, timeout=TIMEOUT) as response,
                files.replacing(path) as temporary,
                temporary.open("wb") as file,
            ):
                _receive(response, file, limit)
            return
        except (OSError, ValueError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in errors.DISK_FULL:
                raise errors.UserError(f"{path} could not be written ({error.strerror}): free space") from error
            refused = isinstance(error, urllib.error.HTTPError) and error.code not in _LATER
            if refused or isinstance(error, ValueError) or attempt + 1 == ATTEMPTS:
                raise OSError(f"{url} cannot be downloaded ({error})") from error
        time.sleep(PAUSE * 2**attempt)


def _receive(response: http.client.HTTPResponse, file: BinaryIO, limit: int) -> None:
    """Write a response to a file.

    Raises:
      ValueError: it has more than `limit` bytes, as it declares or as it turns out.
      OSError: it ends too early.
    """
    declared = response.headers.get("Content-Length")
    if declared is not None and int(declared) > limit:
        raise ValueError(f"it has {int(declared):,} bytes, the limit is {limit:,}")
    size = 0
    while block := response.read(_BLOCK):
        size += len(block)
        if size > limit:
            raise ValueError(f"it has more than {limit:,} bytes, the limit")
        file.write(block)
    if declared is not None and size != int(declared):
        raise OSError(f"received {size} of {declared} bytes")
