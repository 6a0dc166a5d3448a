"""Downloads of images and shards that a data set names by URL."""

import http.client
import pathlib
import shutil
import time
import urllib.error
import urllib.request

from jworld.utils import files

#: Seconds without data after which a download fails, number of attempts, and seconds before the second one, which
#: double for each further one.
TIMEOUT, ATTEMPTS, PAUSE = 10.0, 3, 0.1
_AGENT = "Mozilla/5.0 (compatible; jworld)"
#: Statuses of a server that may answer later.
_LATER = (408, 425, 429, 500, 502, 503, 504)


def is_url(name: object) -> bool:
    """Return whether a name is an http(s) URL."""
    return isinstance(name, str) and name.startswith(("http://", "https://"))


def fetch(url: str, path: pathlib.Path) -> None:
    """Download a file, unless it is there; it is complete or absent.

    Raises:
      OSError: the server cannot be reached, or refuses; the last reason of `ATTEMPTS`.
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
                shutil.copyfileobj(response, file)
                expected, found = response.headers.get("Content-Length"), file.tell()
                if expected is not None and found != int(expected):
                    raise OSError(f"received {found} of {expected} bytes")
            return
        except (OSError, ValueError, http.client.HTTPException) as error:
            refused = isinstance(error, urllib.error.HTTPError) and error.code not in _LATER
            if refused or isinstance(error, ValueError) or attempt + 1 == ATTEMPTS:
                raise OSError(f"{url} cannot be downloaded ({error})") from error
        time.sleep(PAUSE * 2**attempt)
