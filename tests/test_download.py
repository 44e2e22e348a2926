# SPDX-License-Identifier: Apache-2.0
"""`fetch` against a server on loopback that fails in every way hosts fail."""

import hashlib
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import numpy as np
import pytest
from fault_server import FaultServer, chunked, file, reset, status, until

from gluon_resnet import bundled
from gluon_resnet.errors import InputError
from gluon_resnet.preprocess import Protocol
from gluon_resnet.weights import download
from gluon_resnet.weights.download import cached_path, fetch
from gluon_resnet.weights.published import Checkpoint

BODY, OTHER_BODY = np.random.default_rng(5).bytes(400_000), b"another file" * 20_000
SHA256, SHA1 = hashlib.sha256(BODY).hexdigest(), hashlib.sha1(BODY).hexdigest()
FETCH = "import sys, test_download as t; t.fetch(t.row(sys.argv[1]))"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own, and short pauses."""
    monkeypatch.setenv("GLUON_RESNET_CACHE", str(tmp_path / "cache"))
    for name in ("GLUON_RESNET_MIRROR", "GLUON_RESNET_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "BACK_OFF", 0.001)
    return tmp_path / "cache"


@pytest.fixture
def server():
    with FaultServer() as server:
        yield server


def row(*urls, **values):
    """Return a row of BODY; give a checksum or size of "" or None to leave it out."""
    values = {"format": "pth", "licence": "MIT", "sha256": SHA256[:8], **values}
    return Checkpoint(
        model="a",
        tag="b",
        layout="own",
        source="",
        protocol=Protocol(),
        urls=urls,
        **values,
    )


def at(server, *answers, **values):
    """Return a row of a file that the server gives with these answers in turn."""
    server.answers["/f"] = list(answers)
    return row(f"{server.url}/f", **values)


def ranges(server):
    return [request.byte_range for request in server.requests]


def names(folder):
    return sorted(path.name for path in folder.glob("*"))


def reason(checkpoint):
    """Return why `fetch` refuses, checked to be one line that leaves no file."""
    with pytest.raises(InputError) as caught:
        fetch(checkpoint)
    assert "\n" not in str(caught.value)
    assert not cached_path(checkpoint).exists()
    return str(caught.value)


def zipped(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_a_file_is_downloaded_once_under_its_rows_name(server, cache):
    checkpoint = at(server, file(BODY), size=len(BODY), sha1=SHA1)
    for _ in range(2):
        assert fetch(checkpoint) == cache / "a.b.pth"
        assert (cache / "a.b.pth").read_bytes() == BODY
    assert len(server.requests) == 1
    assert names(cache) == ["a.b.pth", "a.b.pth.lock"]


@pytest.mark.parametrize("end", [None, reset], ids=["closed", "reset"])
def test_a_broken_connection_is_continued_where_it_broke(server, end):
    breaks = file(BODY, stop=150_000, end=end)
    path = fetch(at(server, breaks, breaks, file(BODY)))
    assert path.read_bytes() == BODY
    starts = [int(r.byte_range[len("bytes=") : -1]) for r in server.requests[1:]]
    assert 0 < starts[0] <= 150_000 < starts[1] <= 300_000
    assert [r.if_range for r in server.requests] == [None, '"v1"', '"v1"']


def test_a_silent_connection_is_continued(server, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", (10.0, 0.3))
    event = threading.Event()
    silent = file(BODY, stop=150_000, end=until(event))
    path = fetch(at(server, silent, file(BODY)))
    event.set()
    assert path.read_bytes() == BODY
    assert len(server.requests) == 2


def test_a_server_that_never_answers_is_given_up(server, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", (10.0, 0.3))
    event = threading.Event()
    begin = time.monotonic()
    text = reason(at(server, until(event)))
    event.set()
    assert time.monotonic() - begin < 9  # the server would have been silent for longer
    assert "no answer within 0.3 s" in text
    assert len(server.requests) == download.ATTEMPTS


def test_silent_sources_cost_one_patience_in_all(server, monkeypatch, cache):
    monkeypatch.setattr(download, "SILENCE", 1.2)
    event = threading.Event()
    for path in ("/a", "/b", "/c"):
        server.answers[path] = [until(event)]
    urls = [f"{server.url}/{name}" for name in "abc"]
    begin = time.monotonic()
    text = reason(row(*urls))
    seconds = time.monotonic() - begin
    event.set()
    assert 1.1 < seconds < 3
    for url in urls:
        assert f"{url}: no answer within 0.4 s" in text
    assert names(cache) == ["a.b.pth.lock"]  # no empty .part


def test_source_that_answers_has_all_its_time(server, monkeypatch):
    monkeypatch.setattr(download, "SILENCE", 0.5)

    def slow(handler):
        time.sleep(1)
        file(BODY)(handler)

    breaks = file(BODY, stop=150_000)
    assert fetch(at(server, breaks, slow)).read_bytes() == BODY


def test_silent_source_leaves_the_rest_to_the_next(server, monkeypatch):
    monkeypatch.setattr(download, "SILENCE", 0.6)
    event = threading.Event()
    server.answers["/silent"] = [until(event)]
    server.answers["/f"] = [file(BODY)]
    path = fetch(row(f"{server.url}/silent", f"{server.url}/f"))
    event.set()
    assert path.read_bytes() == BODY


def test_name_that_takes_long_to_look_up_is_given_up(monkeypatch, cache):
    monkeypatch.setattr(download, "SILENCE", 0.3)
    ended = threading.Event()

    def getaddrinfo(*_):
        ended.wait(10)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    begin = time.monotonic()
    text = reason(row("http://host.invalid/f"))
    ended.set()
    assert time.monotonic() - begin < 3
    assert "http://host.invalid/f: no answer within 0.3 s; set GLUON_RESNET" in text
    assert names(cache) == ["a.b.pth.lock"]


def test_break_before_the_first_byte_leaves_no_part(server, cache):
    reason(at(server, file(BODY, stop=0), status(404)))
    assert names(cache) == ["a.b.pth.lock"]


def test_a_body_without_length_that_breaks_off_is_continued(server):
    path = fetch(at(server, chunked(BODY[:100_000]), file(BODY)))
    assert path.read_bytes() == BODY
    assert ranges(server) == [None, "bytes=100000-"]


def test_more_breaks_than_attempts_are_survived_while_bytes_arrive(server):
    breaks = file(BODY, stop=60_000)
    path = fetch(at(server, *[breaks] * (download.ATTEMPTS + 1), file(BODY)))
    assert path.read_bytes() == BODY
    assert len(server.requests) > download.ATTEMPTS + 1


def test_a_server_without_ranges_is_asked_for_the_whole_again(server):
    broken, whole = (file(BODY, ranges=False, stop=stop) for stop in (150_000, None))
    assert fetch(at(server, broken, whole)).read_bytes() == BODY


def test_a_server_without_ranges_that_always_breaks_off_is_given_up(server):
    longer, shorter = (file(BODY, ranges=False, stop=n) for n in (150_000, 100_000))
    assert "IncompleteRead" in reason(at(server, *[longer, shorter] * 9))
    assert len(server.requests) == download.ATTEMPTS


def test_a_server_that_sends_another_range_is_asked_from_the_beginning(server):
    wrong = status(206, Content_Range="bytes 7-9/400000")
    answers = file(BODY, stop=150_000), wrong, file(BODY)
    assert fetch(at(server, *answers, sha256="")).read_bytes() == BODY
    assert ranges(server)[2] is None


@pytest.mark.parametrize("sha256", [SHA256, ""], ids=["checksum", "no checksum"])
def test_a_file_that_changes_between_attempts_is_not_mixed(server, sha256):
    old = file(OTHER_BODY, etag='"v0"', stop=150_000)
    assert fetch(at(server, old, file(BODY), sha256=sha256)).read_bytes() == BODY


def test_a_weak_etag_is_not_sent_back(server):
    fetch(at(server, file(BODY, etag='W/"1"', stop=150_000), file(BODY)))
    assert server.requests[1].byte_range
    assert server.requests[1].if_range is None


def test_a_mixture_that_only_the_checksum_shows_is_downloaded_anew(server):
    old, new = file(OTHER_BODY, etag=None, stop=150_000), file(BODY, etag=None)
    assert fetch(at(server, old, new)).read_bytes() == BODY
    assert ranges(server)[2:] == [None]


def test_the_next_call_continues_what_the_last_one_left(server, cache):
    checkpoint = at(server, file(BODY, stop=150_000), status(503))
    assert "HTTP 503 Service Unavailable" in reason(checkpoint)
    assert len(server.requests) == 1 + download.ATTEMPTS - 1
    (part,) = cache.glob("*.part")
    size = part.stat().st_size
    server.requests.clear()
    assert fetch(at(server, file(BODY))).read_bytes() == BODY
    assert ranges(server) == [f"bytes={size}-"]
    assert not part.exists()


def test_without_a_checksum_no_older_beginning_is_used(server):
    reason(at(server, file(BODY, stop=150_000), status(503), sha256=""))
    server.requests.clear()
    fetch(at(server, file(BODY), sha256=""))
    assert ranges(server) == [None]


@pytest.mark.parametrize("extra", [b"", b"too much"], ids=["whole", "too long"])
def test_a_part_that_lacks_nothing_is_verified(server, cache, extra):
    checkpoint = at(server, file(BODY, stop=150_000), status(503))
    reason(checkpoint)
    (part,) = cache.glob("*.part")
    part.write_bytes(BODY + extra)
    server.requests.clear()
    assert fetch(at(server, file(BODY))).read_bytes() == BODY
    assert len(server.requests) == (2 if extra else 1)


def test_wrong_bytes_never_get_the_final_name(server, cache):
    text = reason(at(server, file(OTHER_BODY)))
    wrong = hashlib.sha256(OTHER_BODY).hexdigest()[:8]
    assert f"/f: the file has sha256 {wrong} instead of {SHA256[:8]}; set" in text
    assert names(cache) == ["a.b.pth.lock"]


def test_a_wrong_sha1_never_gets_the_final_name(server):
    text = reason(at(server, file(OTHER_BODY), sha256="", sha1=SHA1))
    assert f"instead of {SHA1}" in text


@pytest.mark.parametrize("sha256", [SHA256, ""], ids=["checksum", "no checksum"])
def test_a_body_cut_by_its_told_length_is_refused(server, sha256):
    checkpoint = at(server, file(BODY, length=399_999), sha256=sha256, size=len(BODY))
    assert "the file has 399999 bytes instead of 400000" in reason(checkpoint)


def test_a_body_shorter_than_its_told_length_is_refused(server):
    text = reason(at(server, file(BODY[:-1], length=400_000, ranges=False)))
    assert "more expected" in text


def test_an_empty_file_is_refused(server):
    assert "the file is empty" in reason(at(server, file(b""), sha256=""))


@pytest.mark.parametrize("code", [401, 403, 404, 204])
def test_a_lasting_status_is_not_asked_again(server, code):
    assert f"/f: HTTP {code} " in reason(at(server, status(code)))
    assert len(server.requests) == 1


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504])
def test_a_passing_status_is_asked_again_with_growing_pauses(server, code, monkeypatch):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    answers = [status(code)] * (download.ATTEMPTS - 1)
    assert fetch(at(server, *answers, file(BODY))).read_bytes() == BODY
    assert pauses == [0.001, 0.002, 0.004, 0.008]


def test_retry_after_is_obeyed(server, monkeypatch):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    fetch(at(server, status(429, Retry_After="7"), file(BODY)))
    assert pauses == [7.0]


@pytest.mark.parametrize("text", ["²", "-7", "1e9", "soon", "", "9" * 400])
def test_retry_after_that_is_no_number_is_left_alone(server, text, monkeypatch):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setattr(download, "LONGEST_WAIT", 1e12)
    # http.server writes headers as Latin-1, which is what clients read them as.
    fetch(at(server, status(503, Retry_After=text), file(BODY)))
    assert pauses == [0.001]


def test_retry_after_may_be_a_date(server, monkeypatch):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    date = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=30), True)
    fetch(at(server, status(503, Retry_After=date), file(BODY)))
    assert 25 < pauses[0] <= 30


def test_a_server_that_asks_for_an_hour_is_given_up(server):
    text = reason(at(server, status(429, Retry_After="3600")))
    assert "HTTP 429 Too Many Requests; it asks to wait 3600 s" in text


def test_redirects_are_followed_when_continuing_too(server):
    server.answers["/new"] = [file(BODY, stop=150_000), file(BODY)]
    assert fetch(at(server, status(302, Location="/new"))).read_bytes() == BODY
    assert [request.path for request in server.requests] == ["/f", "/new"] * 2
    assert server.requests[3].byte_range


def test_a_circle_of_redirects_is_one_reason(server):
    text = reason(at(server, status(302, Location="/f")))
    assert "Exceeded 30 redirects" in text


def test_the_next_source_is_asked_and_all_reasons_are_told(server):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        refusing = f"http://127.0.0.1:{unused.getsockname()[1]}/f"
        server.answers["/wrong"] = [file(OTHER_BODY)]
        urls = (refusing, f"{server.url}/gone", f"{server.url}/wrong", "ftp://x/y")
        text = reason(row(*urls))
        server.answers["/broken"] = [file(BODY, stop=150_000), status(503)]
        server.answers["/right"] = [file(BODY)]
        path = fetch(row(*urls, f"{server.url}/broken", f"{server.url}/right"))
    assert text.startswith("cannot download a.b: ")
    assert f"{refusing}: Connection refused; " in text
    assert f"{server.url}/gone: HTTP 404 Not Found; " in text
    assert f"{server.url}/wrong: the file has sha256" in text
    assert "ftp://x/y: No connection adapters" in text
    assert text.endswith(f"set GLUON_RESNET_MIRROR, or copy the file to {path}")
    assert path.read_bytes() == BODY
    assert names(path.parent) == ["a.b.pth", "a.b.pth.lock"]


def test_a_row_without_source_says_so():
    assert "cannot download a.b: it has no source" in reason(row())


def test_mirrors_are_asked_first_by_the_cached_name(server, monkeypatch):
    monkeypatch.setenv("GLUON_RESNET_MIRROR", f"{server.url}/m1 {server.url}/m2/")
    server.answers["/m2/a.b.pth"] = [file(BODY)]
    assert fetch(row(f"{server.url}/f")).read_bytes() == BODY
    asked = [request.path for request in server.requests]
    assert asked == ["/m1/a.b.pth", "/m2/a.b.pth"]


def test_offline_is_said_at_once(server, monkeypatch, cache):
    monkeypatch.setenv("GLUON_RESNET_OFFLINE", "1")
    text = reason(at(server, file(BODY)))
    path = cache / "a.b.pth"
    assert text.startswith(f"{path} does not exist, and GLUON_RESNET_OFFLINE forbids")
    assert not server.requests
    cache.mkdir()
    path.write_bytes(BODY)
    assert fetch(row()) == path
    path.write_bytes(OTHER_BODY)
    with pytest.raises(InputError, match=r"pth has sha256 \w+ instead of"):
        fetch(row())


@pytest.mark.parametrize("licence", ["CC-BY-NC-4.0", "CC-BY-NC-SA-4.0"])
def test_a_non_commercial_licence_must_be_accepted(server, licence):
    checkpoint = at(server, file(BODY), licence=licence)
    text = reason(checkpoint)
    assert text.startswith(f"a.b has the licence {licence}, which forbids commercial")
    assert "--accept-licence" in text
    assert not server.requests
    assert fetch(checkpoint, accept_licence=True).read_bytes() == BODY
    with pytest.raises(InputError, match="--accept-licence"):
        fetch(checkpoint)


@pytest.mark.parametrize("sha256", [SHA256, ""], ids=["checksum", "no checksum"])
def test_a_damaged_cached_file_is_downloaded_again(server, sha256, capsys):
    checkpoint = at(server, file(BODY), sha256=sha256)
    path = fetch(checkpoint)
    path.write_bytes(b"?" + BODY[1:])
    assert fetch(checkpoint).read_bytes() == BODY
    assert len(server.requests) == 2
    assert f"{path} has sha256 " in capsys.readouterr().err


@pytest.mark.parametrize("inner", ["x.params", "../../x.params", "/x.params"])
def test_a_zip_of_one_params_file_is_unpacked_nowhere_else(server, cache, inner):
    body = zipped(**{inner: BODY, "readme.txt": b"text"})
    checkpoint = at(
        server, file(body, stop=150_000), file(body), format="params", sha1=SHA1
    )
    assert fetch(checkpoint).read_bytes() == BODY
    assert names(cache) == ["a.b.params", "a.b.params.lock"]
    assert names(cache.parent) == ["cache"]


def test_params_that_come_without_a_zip_are_taken(server):
    assert fetch(at(server, file(BODY), format="params")).read_bytes() == BODY


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (zipped(**{"a.params": BODY, "b.params": BODY}), "2 .params files"),
        (zipped(readme=b"text"), "0 .params files"),
        (zipped(**{"a.params": BODY})[:-30], "damaged zip"),
        (zipped(**{"a.params": BODY}).replace(BODY[999:1009], bytes(10)), "damaged"),
        (zipped(**{"a.params": bytes(5000)}), "unpacks to 5000 bytes"),
    ],
    ids=["two", "none", "truncated", "damaged", "bomb"],
)
def test_a_bad_zip_is_refused(server, cache, monkeypatch, body, told):
    size_limit = 4999 if told.endswith("5000 bytes") else 2 * len(BODY)
    monkeypatch.setattr(download, "LARGEST_UNPACKED", size_limit)
    assert told in reason(at(server, file(body), format="params", sha1=SHA1))
    assert names(cache) == ["a.b.params.lock"]


def test_a_full_disk_is_one_line_and_leaves_nothing(server, cache):
    reason(at(server, file(BODY, stop=150_000), status(503)))
    (part,) = cache.glob("*.part")
    part.unlink()
    part.symlink_to("/dev/full")
    text = reason(at(server, file(BODY)))
    assert text.startswith(f"cannot keep {cache / 'a.b.pth'}: No space left on device")
    assert "GLUON_RESNET_CACHE" in text
    assert names(cache) == ["a.b.pth.lock"]


def test_a_cache_folder_that_cannot_be_made_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("GLUON_RESNET_CACHE", str(tmp_path / "file" / "cache"))
    assert "Not a directory; make room or give access" in reason(row())


def test_a_home_folder_that_is_not_known_is_one_line(monkeypatch):
    monkeypatch.setenv("GLUON_RESNET_CACHE", "~no_such_user/cache")
    with pytest.raises(InputError, match="~no_such_user/cache has no home folder"):
        fetch(row())


def test_the_cache_is_in_the_home_folder_by_default(monkeypatch, tmp_path):
    monkeypatch.delenv("GLUON_RESNET_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cached_path(row()) == tmp_path / ".cache/gluon_resnet/a.b.pth"


def test_a_cache_that_can_only_be_read_serves(server, monkeypatch):
    fetch(at(server, file(BODY)))
    monkeypatch.setattr(download, "_locked", None)
    assert fetch(row()).read_bytes() == BODY


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(
    server, capsys, monkeypatch
):
    breaks, whole = file(BODY, stop=150_000), file(BODY)
    fetch(at(server, breaks, whole)).unlink()
    out, err = capsys.readouterr()
    assert out == ""
    first, second = err.splitlines()
    assert first == f"downloading a.b from {server.url}/f"
    assert second.endswith("; next attempt in 0.001 s")
    for has_ranges in (True, False):
        terminal = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
        terminal.isatty = lambda: True
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        fetch(at(server, breaks, file(BODY, ranges=has_ranges))).unlink()
        shown = terminal.buffer.getvalue()
        assert b"downloading: 0:00:00, 0.00B/400kB" in shown


def start(server):
    """Start another process that fetches the server's file."""
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, f"{server.url}/f"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
    )


def lines_until(process, text):
    for line in process.stderr:
        if text in line:
            return
    pytest.fail(f"the process ended without {text!r}")


def test_two_processes_download_a_file_once(server):
    may_end = threading.Event()

    def slow(handler):
        may_end.wait(30)
        file(BODY)(handler)

    at(server, slow)
    with start(server) as first:
        lines_until(first, "downloading a.b from")
        with start(server) as second:
            lines_until(second, "waiting for another process that downloads a.b.pth")
            may_end.set()
    assert (first.returncode, second.returncode) == (0, 0)
    assert len(server.requests) == 1


def test_ctrl_c_leaves_a_part_that_the_next_call_continues(server, cache):
    event = threading.Event()
    has_come = threading.Event()

    def silent(handler):
        has_come.set()
        event.wait(30)

    checkpoint = at(server, file(BODY, stop=150_000, end=silent), file(BODY))
    with start(server) as process:
        assert has_come.wait(30)
        while not any(part.stat().st_size for part in cache.glob("*.part")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        process.communicate()
    event.set()
    assert process.returncode != 0
    assert not (cache / "a.b.pth").exists()
    assert fetch(checkpoint).read_bytes() == BODY
    assert ranges(server)[1] is not None


@pytest.fixture
def hub(server, monkeypatch):
    """The server as Hugging Face hub: it redirects to /cdn and tells the SHA-256."""
    from huggingface_hub import constants

    template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    server.answers["/timm/a.b/resolve/main/model.safetensors"] = [
        status(
            302,
            Location=f"{server.url}/cdn",
            X_Linked_Etag=f'"{SHA256}"',
            X_Linked_Size=str(len(BODY)),
        )
    ]
    return server


def hub_row():
    return row(format="safetensors", hub="timm/a.b", sha256="")


def test_a_file_of_the_hub_is_verified_with_the_hubs_checksum(hub, cache):
    hub.answers["/cdn"] = [file(BODY, stop=150_000), file(BODY)]
    assert fetch(hub_row()) == cache / "a.b.safetensors"
    assert (cache / "a.b.safetensors").read_bytes() == BODY
    assert hub.requests[-1].byte_range
    hub.requests.clear()
    fetch(hub_row())
    assert not hub.requests


def test_silent_hub_is_given_up_and_so_is_the_host_it_leads_to(hub, monkeypatch):
    monkeypatch.setattr(download, "SILENCE", 0.5)
    monkeypatch.setattr(download, "SILENCE_OF_NEXT_HOST", 0.3)
    event = threading.Event()
    hub.answers["/cdn"] = [until(event)]
    assert "model.safetensors: no answer within 0.5 s" in reason(hub_row())
    hub.answers["/timm/a.b/resolve/main/model.safetensors"] = [until(event)]
    assert "model.safetensors: no answer within 0.5 s" in reason(hub_row())
    event.set()


def test_checkpoint_that_comes_with_the_package_is_taken_from_it(monkeypatch, cache):
    monkeypatch.setenv("GLUON_RESNET_OFFLINE", "1")
    assert fetch(row(bundled="b.params")) == bundled.FOLDER / "b.params"
    assert not cache.exists()


def test_wrong_bytes_from_the_hub_are_refused(hub, cache):
    hub.answers["/cdn"] = [file(OTHER_BODY[:1000] + BODY[1000:])]
    assert f"instead of {SHA256}" in reason(hub_row())
    assert names(cache) == ["a.b.safetensors.lock"]


def test_the_next_call_continues_a_file_of_the_hub(hub):
    hub.answers["/cdn"] = [file(BODY, stop=150_000), status(503)]
    reason(hub_row())
    hub.requests.clear()
    hub.answers["/cdn"] = [file(BODY)]
    assert fetch(hub_row()).read_bytes() == BODY
    assert hub.requests[-1].byte_range


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (status(404), "Client error '404 Not Found'"),
        (status(401), "Client error '401 Unauthorized'"),
        (status(200, ETag='"short"'), "the hub tells no SHA-256 of the file"),
    ],
    ids=["404", "401", "no checksum"],
)
def test_a_hub_that_has_not_the_file_is_one_reason(hub, answer, told):
    hub.answers["/timm/a.b/resolve/main/model.safetensors"] = [answer]
    text = reason(hub_row())
    assert f"/timm/a.b/resolve/main/model.safetensors: {told}" in text


def test_a_hub_that_is_busy_is_asked_again(hub, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    hub.answers["/timm/a.b/resolve/main/model.safetensors"].insert(0, status(503))
    hub.answers["/cdn"] = [file(BODY)]
    assert fetch(hub_row()).read_bytes() == BODY


def test_the_hubs_own_offline_switch_is_one_reason(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in reason(hub_row())
    assert not hub.requests
