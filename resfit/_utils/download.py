"""Downloads of published files, checked against their checksums."""

import hashlib
import http.client
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import IO, NamedTuple

from resfit.errors import DownloadError

_log = logging.getLogger("resfit")

_ATTEMPTS = 3
_PAUSE = 1.0  # seconds before the second attempt, twice as long before the third
_TIMEOUT = 30.0  # seconds without a byte
_CHUNK = 1 << 20
_LARGEST = 1 << 32  # the most bytes of a file whose size is not published


class Remote(NamedTuple):
    """A published file.

    Attributes:
      url: the URL of the file.
      size: the size in bytes; None if it is not published.
      sha256: the checksum in hexadecimal digits, or its first digits if only those are published.
      remedy: the remedy if the URL cannot be reached.
    """

    url: str
    size: int | None
    sha256: str
    remedy: str = "pass path= with the folder that holds it"

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self.url.rpartition("/")[2]


def fetch(remote: Remote, target: Path) -> None:
    """Download a file to `target`, which is created only if the whole file has the published checksum.

    A broken connection is retried; there are three attempts.

    Raises:
      DownloadError: if the server cannot be reached or refuses, or if the file is not the published one.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    size = "" if remote.size is None else f" ({remote.size / 1e6:.1f} MB)"
    _log.info("Downloading %s%s to %s.", remote.url, size, target)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            _with_patience(remote, target, file)
        Path(temporary).replace(target)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _with_patience(remote: Remote, target: Path, file: IO[bytes]) -> None:
    import urllib.error  # slow to import, and rarely needed

    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _once(remote, file)
        except DownloadError:
            raise
        except (OSError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
            refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
            if refused or attempt == _ATTEMPTS:
                raise DownloadError(
                    f"Downloading {remote.url} failed{'' if refused else f' {_ATTEMPTS} times'}: {error}. Expected a "
                    f"network connection to this URL. Without one, copy the file to {target}, or {remote.remedy}."
                ) from error
            _log.warning("Downloading %s failed: %s. Trying again.", remote.url, error)
            time.sleep(_PAUSE * 2 ** (attempt - 1))
        else:
            return


def _once(remote: Remote, file: IO[bytes]) -> None:
    import urllib.request  # slow to import, and rarely needed

    file.seek(0)
    file.truncate()
    digest, size = hashlib.sha256(), 0
    most = _LARGEST if remote.size is None else remote.size
    with urllib.request.urlopen(remote.url, timeout=_TIMEOUT) as response:
        promised = response.headers["Content-Length"]
        while size <= most and (chunk := response.read(_CHUNK)):
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
    # A connection that breaks early looks like the end of the file.
    if promised is not None and size < int(promised) and size <= most:
        raise ConnectionError(f"it ended after {size} of {promised} bytes")
    if remote.size not in (None, size) or not is_published(digest.hexdigest(), remote):
        expected = remote.sha256 if remote.size is None else f"{remote.size} bytes, {remote.sha256}"
        raise DownloadError(
            f"{remote.url} gave {'at least ' * (size > most)}{size} bytes with SHA-256 {digest.hexdigest()}. "
            f"Expected the published file: {expected}{'...' * (len(remote.sha256) < 64)}. The download was deleted. If "
            f"a proxy answers instead of the server, copy the file from elsewhere, and {remote.remedy}."
        )


def is_published(sha256: str, remote: Remote) -> bool:
    """Return True if a file with this checksum is the published one."""
    return sha256.startswith(remote.sha256)
