# SPDX-License-Identifier: Apache-2.0
"""`fetch`: a published checkpoint into the cache, verified.

    GLUON_RESNET_CACHE    folder of the files, ~/.cache/gluon_resnet by default
    GLUON_RESNET_MIRROR   URLs, separated by spaces, of folders that hold the same files
                          under the same names, as a served cache folder does; they are
                          asked before the published places
    GLUON_RESNET_OFFLINE  1: only what is in the cache

Rows of the Hugging Face hub also obey its library's variables, such as HF_ENDPOINT.

A file is kept as `MODEL.TAG.FORMAT` and gets that name only after its size and checksum
were found to be the published ones. Until then its bytes are in a `.part` file, which
the next call continues. A checkpoint that comes with the package is taken from there.
Each call verifies the cached file, 0.1 s for 100 MB. Where no
checksum is published, a `.sha256` file has the one of its arrival.
"""

import dataclasses
import errno
import hashlib
import os
import queue
import re
import shutil
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, BinaryIO, Optional

import requests
from filelock import FileLock, Timeout
from urllib3.exceptions import NewConnectionError

from gluon_resnet import bundled
from gluon_resnet.errors import InputError
from gluon_resnet.progress import progress
from gluon_resnet.weights.formats import LARGEST_UNPACKED
from gluon_resnet.weights.published import Checkpoint

TIMEOUT = (10.0, 30.0)
"""Seconds to connect, and to wait for the next bytes."""
SILENCE = 8.0
"""Seconds that all sources together may keep silent before the first answer."""
SILENCE_OF_NEXT_HOST = 3.0
"""Seconds that the host at least has which the hub leads on to."""
ATTEMPTS = 5
"""Attempts in a row that bring no new byte before a source is given up."""
ATTEMPTS_TO_CONNECT = 2
"""The same where no connection can be made: most often there is no network."""
BACK_OFF = 1.0
"""Seconds before the second attempt; doubled before each further one."""
LONGEST_WAIT = 60.0
"""Seconds; a server that asks for more patience is given up."""

_PASSING_STATUSES = {408, 425, 429, 500, 502, 503, 504}


class _SourceError(Exception):
    """One source cannot give the file; the message says why."""


class _Setback(Exception):
    """An attempt failed and the next may not.

    wait: seconds that the server asks for. limit: attempts, for this reason.
    """

    def __init__(self, reason: str, wait: float = 0.0, limit: Optional[int] = None):
        super().__init__(reason)
        self.wait, self.limit = wait, limit or ATTEMPTS


def cached_path(checkpoint: Checkpoint) -> Path:
    """Return where `fetch` keeps the file; it need not exist."""
    folder = os.environ.get("GLUON_RESNET_CACHE") or "~/.cache/gluon_resnet"
    try:
        return Path(folder).expanduser() / f"{checkpoint.name}.{checkpoint.format}"
    except RuntimeError:  # no home folder is known, as for a bare uid in a container
        raise InputError(
            f"cache folder {folder} has no home folder to be in; set "
            "GLUON_RESNET_CACHE to a folder that can be written"
        ) from None


def fetch(checkpoint: Checkpoint, *, accept_licence: bool = False) -> Path:
    """Return the path of the checkpoint's verified file, downloaded if need be.

    Sources are asked in order: mirrors, the hub, published URLs. Broken connections are
    continued; passing errors are tried again with growing pauses. One process at a time
    downloads a file, others wait for it.
    Raises InputError where the licence forbids commercial use and `accept_licence` is
    not set, offline without a cached file, where the cache cannot be written, and where
    every source failed; the message has the reason of each.
    """
    if checkpoint.bundled:
        return bundled.FOLDER / checkpoint.bundled
    path = cached_path(checkpoint)
    if "-NC" in checkpoint.licence and not accept_licence:
        raise InputError(
            f"{checkpoint.name} has the licence {checkpoint.licence}, which forbids "
            "commercial use; if yours is none, give --accept-licence "
            "(accept_licence=True)"
        )
    try:
        if fault := _cached_fault(path, checkpoint):
            _refuse_offline(path, fault)
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(path):
                # Another process may have brought it while this one waited.
                if fault := _cached_fault(path, checkpoint):
                    _replace(path, checkpoint, fault)
    except OSError as error:
        raise InputError(
            f"cannot keep {path}: {error.strerror or error}; make room or give access "
            "there, or set GLUON_RESNET_CACHE to another folder"
        ) from error
    return path


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _remove_parts(path: Path) -> None:
    for part in path.parent.glob(f"{path.name}.*.part"):
        part.unlink()


def is_offline() -> bool:
    """Return whether the user forbids to download anything."""
    return os.environ.get("GLUON_RESNET_OFFLINE", "0") not in ("", "0")


def _refuse_offline(path: Path, fault: str) -> None:
    if is_offline():
        raise InputError(
            f"{path} {fault}, and GLUON_RESNET_OFFLINE forbids to download it; unset "
            "that, or copy the file there from another machine's cache"
        )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _say(f"waiting for another process that downloads {path.name}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _cached_fault(path: Path, checkpoint: Checkpoint) -> str:
    arrival = _arrival_checksum(path)
    if not _has_checksum(checkpoint) and arrival.exists():
        checkpoint = dataclasses.replace(checkpoint, sha256=arrival.read_text())
    return _fault(path, checkpoint)


def _arrival_checksum(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _has_checksum(checkpoint: Checkpoint) -> bool:
    return bool(checkpoint.sha256 or checkpoint.sha1)


def _fault(path: Path, checkpoint: Checkpoint) -> str:
    """Say how the file differs from what is published; nothing where it does not."""
    if not path.exists():
        return "does not exist"
    size = path.stat().st_size
    if size != (checkpoint.size or size):
        return f"has {size} bytes instead of {checkpoint.size}"
    if size == 0:
        return "is empty"
    for algorithm in ("sha256", "sha1"):
        published = getattr(checkpoint, algorithm)
        if published and not (digest := _digest(path, algorithm)).startswith(published):
            return f"has {algorithm} {digest[: len(published)]} instead of {published}"
    return ""


def _digest(path: Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _replace(path: Path, checkpoint: Checkpoint, fault: str) -> None:
    """Bring the file from the first source that has it; the lock is held."""
    if path.exists():
        _say(f"{path} {fault}: downloading it again")
        path.unlink()
    reasons, silence = [], SILENCE
    sources = _sources(path, checkpoint)
    for asked, url in enumerate(sources):
        contact = _Contact(silence / (len(sources) - asked))
        try:
            return _bring(url, path, checkpoint, contact)
        except _SourceError as error:
            reasons.append(f"{url}: {error}")
        except OSError as error:
            if error.errno == errno.ENOSPC:  # a full disk stops other programs, too
                _remove_parts(path)
            raise
        silence = max(0.0, silence - contact.spent)
    found = "; ".join(reasons) or "it has no source"
    raise InputError(
        f"cannot download {checkpoint.name}: {found}; "
        f"set GLUON_RESNET_MIRROR, or copy the file to {path}"
    )


def _sources(path: Path, checkpoint: Checkpoint) -> list[str]:
    mirrors = os.environ.get("GLUON_RESNET_MIRROR", "").split()
    urls = [f"{mirror.rstrip('/')}/{path.name}" for mirror in mirrors]
    if checkpoint.hub:
        from huggingface_hub import hf_hub_url

        urls.append(hf_hub_url(checkpoint.hub, "model.safetensors"))
    return [*urls, *checkpoint.urls]


class _Contact:
    """Waits for the first answer of a source, which has so many seconds for it.

    A thread asks, since no time-out of a library is one for all: that of a connection
    is for each address of a host, and the name's look-up has its own.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.spent = 0.0
        """Seconds of silence."""
        self.is_made = False

    def ask(self, request: Callable[[], Any]) -> Any:
        """Return what `request` does, or raise what it raises.

        Raises _SourceError where the source has not answered in its time.
        """
        if self.is_made:
            return request()
        answers: queue.SimpleQueue = queue.SimpleQueue()

        def run() -> None:
            try:
                answers.put((request(), None))
            except BaseException as error:
                answers.put((None, error))

        began = time.monotonic()
        threading.Thread(target=run, daemon=True).start()
        try:
            answer, error = answers.get(timeout=max(0.0, self.seconds - self.spent))
        except queue.Empty:
            self.spent = self.seconds
            raise _SourceError(f"no answer within {self.seconds:.3g} s") from None
        self.spent += time.monotonic() - began
        if error is not None:
            raise error
        self.is_made = True
        return answer

    def allows(self, wait: float) -> bool:
        """Count a pause before the next attempt; return whether time is left then."""
        if not self.is_made:
            self.spent += wait
        return self.is_made or self.spent < self.seconds

    def next_host(self) -> None:
        """Wait for the first answer of another host, in the time that is left."""
        self.is_made = False
        self.seconds = max(self.seconds, self.spent + SILENCE_OF_NEXT_HOST)


def _bring(url: str, path: Path, checkpoint: Checkpoint, contact: _Contact) -> None:
    """Download, verify, rename. A `.part` file belongs to one URL."""
    url_digest = hashlib.sha256(url.encode()).hexdigest()[:8]
    part = path.with_name(f"{path.name}.{url_digest}.part")
    has_published_checksum = _has_checksum(checkpoint)
    if checkpoint.hub and checkpoint.hub in url and not has_published_checksum:
        checkpoint = _with_checksum_of_hub(url, checkpoint, contact)
        contact.next_host()
    if not _has_checksum(checkpoint):
        # Only a checksum can tell that an older beginning belongs to today's end.
        part.unlink(missing_ok=True)
    _say(f"downloading {checkpoint.name} from {url}")
    if fault := _download_and_check(url, part, checkpoint, contact):
        _say(f"the file {fault}; once more, lest it be pieces of two versions")
        part.unlink()
        fault = _download_and_check(url, part, checkpoint, contact)
    if fault:
        part.unlink()
        raise _SourceError(f"the file {fault}")
    if not has_published_checksum:
        _arrival_checksum(path).write_text(_digest(part, "sha256"))
    part.replace(path)
    _remove_parts(path)


def _download_and_check(
    url: str, part: Path, checkpoint: Checkpoint, contact: _Contact
) -> str:
    _download(url, part, contact)
    return _unpack(part, checkpoint) or _fault(part, checkpoint)


def _with_checksum_of_hub(
    url: str, checkpoint: Checkpoint, contact: _Contact
) -> Checkpoint:
    """Return the row with the size and SHA-256 that the Hugging Face hub has of it.

    The hub's library downloads, too, but it gives up when a body breaks off, and it
    compares sizes only.
    """
    import httpx
    from huggingface_hub import get_hf_file_metadata
    from huggingface_hub.errors import HfHubHTTPError

    def ask():
        # The library's own retries use a connection pool that it has closed.
        try:
            return contact.ask(lambda: get_hf_file_metadata(url, timeout=TIMEOUT[0]))
        except HfHubHTTPError as error:
            contact.is_made = True
            status = getattr(error.response, "status_code", None)
            if status in _PASSING_STATUSES:
                raise _Setback(_first_line(error)) from error
            raise _SourceError(_first_line(error)) from error
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise _Setback(_root_reason(error), limit=ATTEMPTS_TO_CONNECT) from error
        except httpx.TransportError as error:
            raise _Setback(_root_reason(error)) from error
        except (httpx.HTTPError, OSError) as error:  # such as its offline switch
            raise _SourceError(_first_line(error)) from error

    metadata = _persistently(ask, contact)
    if len(metadata.etag or "") != 64:
        raise _SourceError("the hub tells no SHA-256 of the file")
    return dataclasses.replace(checkpoint, sha256=metadata.etag, size=metadata.size)


def _download(url: str, part: Path, contact: _Contact) -> None:
    """Append to `part` what it lacks of the file.

    Raises _SourceError when the attempts are used up; `part` keeps what came.
    """
    if_range: dict[str, str] = {}
    with requests.Session() as session:

        def ask() -> None:
            try:
                _attempt(session, url, part, if_range, contact)
            except (requests.ConnectTimeout, requests.ConnectionError) as error:
                limit = ATTEMPTS_TO_CONNECT if _is_unreachable(error) else ATTEMPTS
                raise _Setback(_root_reason(error), limit=limit) from error
            except (
                requests.Timeout,
                requests.exceptions.ChunkedEncodingError,
            ) as error:
                raise _Setback(_root_reason(error)) from error
            except requests.RequestException as error:  # a redirect loop, no valid URL
                raise _SourceError(str(error)) from error

        try:
            _persistently(ask, contact, lambda: _size(part))
        except BaseException:
            if not _size(part):
                part.unlink(missing_ok=True)
            raise


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _persistently(
    ask: Callable[[], Any], contact: _Contact, arrived: Callable[[], int] = lambda: 0
) -> Any:
    """Return what `ask` does, asking again after each setback with growing pauses.

    An attempt after which more bytes have `arrived` than ever counts as the first.
    Raises _SourceError when the attempts are used up.
    """
    attempts = furthest = 0
    while True:
        try:
            return ask()
        except _Setback as error:
            setback = error
        attempts = 1 if arrived() > furthest else attempts + 1
        furthest = max(arrived(), furthest)
        wait = max(setback.wait, BACK_OFF * 2 ** (attempts - 1))
        if wait > LONGEST_WAIT:
            raise _SourceError(f"{setback}; it asks to wait {wait:g} s")
        if attempts >= setback.limit or not contact.allows(wait):
            raise _SourceError(str(setback))
        _say(f"{setback}; next attempt in {wait:g} s")
        time.sleep(wait)


def _is_unreachable(error: requests.ConnectionError) -> bool:
    """Tell a host that no connection can be made to from a connection that broke."""
    cause = error.args[0] if error.args else None
    return isinstance(getattr(cause, "reason", None), NewConnectionError)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _attempt(
    session: requests.Session,
    url: str,
    part: Path,
    if_range: dict[str, str],
    contact: _Contact,
) -> None:
    """Ask once for what `part` lacks.

    `if_range` is the header that keeps the server from continuing with another version
    of the file; it is empty until an answer has named the version.
    """
    headers = {"Accept-Encoding": "identity"}
    if had := _size(part):
        headers.update(if_range, Range=f"bytes={had}-")

    def request() -> requests.Response:
        return session.get(url, headers=headers, stream=True, timeout=TIMEOUT)

    with contact.ask(request) as response:
        status = response.status_code
        content_range = response.headers.get("Content-Range", "")
        if status == 416 and content_range == f"bytes */{had}":
            return  # it lacks nothing
        if status in _PASSING_STATUSES:
            raise _Setback(_shown(response), _wait_asked_for(response))
        if status not in (200, 206, 416):
            raise _SourceError(_shown(response))
        continues = status == 206 and content_range.startswith(f"bytes {had}-")
        if status != 200 and not continues:
            part.unlink(missing_ok=True)
            raise _Setback("the server has no such rest of the file")
        etag = response.headers.get("ETag", "")
        if etag.startswith('"'):  # a weak one, W/"...", names no bytes
            if_range["If-Range"] = etag
        with part.open("ab" if continues else "wb") as file:
            _receive(response, file)


def _wait_asked_for(response: requests.Response) -> float:
    """Return the seconds that Retry-After asks for, in seconds or as a date."""
    text = response.headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    try:
        date = parsedate_to_datetime(text)
        return max(0.0, (date - datetime.now(timezone.utc)).total_seconds())
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _receive(response: requests.Response, file: BinaryIO) -> None:
    had, rest = file.tell(), response.raw.length_remaining
    total = None if rest is None else had + rest
    with progress("downloading", total=total, done=had, unit="B") as bar:
        # Larger pieces lose more of a broken connection: only whole ones arrive.
        for piece in response.iter_content(1 << 15):
            file.write(piece)
            bar.update(len(piece))


def _shown(response: requests.Response) -> str:
    return f"HTTP {response.status_code} {response.reason}"


def _root_reason(error: BaseException) -> str:
    """Say what the system said first, without the names of the layers above it."""
    root = error
    while root.__context__ is not None:
        root = root.__context__
    if "timed out" in str(root):
        is_connecting = isinstance(error, requests.ConnectTimeout)
        return f"no answer within {TIMEOUT[0] if is_connecting else TIMEOUT[1]:g} s"
    return getattr(root, "strerror", None) or str(root)


def _unpack(part: Path, checkpoint: Checkpoint) -> str:
    """Put the .params file that a GluonCV zip holds in the zip's place.

    Returns what is wrong with the zip; nothing where all went well or it is no zip.
    """
    with part.open("rb") as file:
        if checkpoint.format != "params" or file.read(4) != b"PK\x03\x04":
            return ""
    unpacked = part.with_suffix(".unpacked.part")
    try:
        with zipfile.ZipFile(part) as archive:
            members = [m for m in archive.infolist() if m.filename.endswith(".params")]
            if len(members) != 1:
                return f"is a zip with {len(members)} .params files instead of one"
            if members[0].file_size > LARGEST_UNPACKED:
                return f"is a zip that unpacks to {members[0].file_size} bytes"
            # Reads no more than the size above; the member's path is not used.
            with archive.open(members[0]) as source, unpacked.open("wb") as target:
                shutil.copyfileobj(source, target)
        unpacked.replace(part)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        return f"is a damaged zip: {error}"
    finally:
        unpacked.unlink(missing_ok=True)
    return ""
