# SPDX-License-Identifier: Apache-2.0
"""What is meant by the names of images, and how each is read."""

import io
import os
import shutil
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gluon_resnet import bundled, image_sources
from gluon_resnet.errors import InputError
from gluon_resnet.image_sources import named_images

SAMPLE = min(bundled.IMAGES.glob("*.png"))


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Three photos, one of them in a folder that is named like an image."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.jpg", "holiday.png/c.png", "[1].png"):
        Path("photos", name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SAMPLE, Path("photos", name))
    return tmp_path / "photos"


def names(*given):
    return [image.name for image in named_images(given)]


def mistake(given):
    """The one line that a name is answered with."""
    (image,) = named_images(given)
    with pytest.raises(InputError) as error:
        image.load(image.name)
    return str(error.value)


def test_folder_stands_for_the_images_below_it(photos):
    assert names("photos") == [
        "photos/[1].png",
        "photos/a.png",
        "photos/b.jpg",
        "photos/holiday.png/c.png",
    ]


def test_pattern_stands_for_what_it_matches(photos):
    assert names("photos/?.png") == ["photos/a.png"]
    assert names("photos/**/c.*") == ["photos/holiday.png/c.png"]
    assert names("phot*") == names("photos")


def test_file_is_no_pattern(photos):
    assert names("photos/[1].png") == ["photos/[1].png"]


def test_names_stay_as_they_were_given(photos):
    given = ["./photos/a.png", str(photos / "a.png"), "nowhere.png"]
    assert names(*given) == given
    assert named_images(given[0]) == named_images([given[0]])


def test_images_without_a_name_are_counted():
    given = [b"image", "a.png", io.BytesIO(b"image")]
    found = named_images(given)
    assert [image.name for image in found] == ["image 0", "a.png", "image 2"]
    assert [image.load(image.name) for image in found[::2]] == given[::2]


def test_what_stands_for_no_image_says_so(photos):
    (photos / "empty").mkdir()
    assert mistake("photos/empty").startswith(
        "photos/empty: a folder without images; give one that holds files ending in "
    )
    assert mistake("photos/*.gif") == (
        "photos/*.gif: no file matches; give image files, folders of them, quoted "
        "patterns such as 'photos/**/*.jpg', http(s) URLs, and - for one image on "
        "standard input"
    )


def test_minus_is_standard_input(monkeypatch):
    content = SAMPLE.read_bytes()
    for given in (content, b""):
        stream = io.TextIOWrapper(io.BytesIO(given))
        monkeypatch.setattr(sys, "stdin", stream)
        (image,) = named_images("-")
        if given:
            assert image.load(image.name) == content
    assert mistake("-") == "-: standard input is empty; pipe one image into it"


def test_standard_input_is_read_up_to_a_limit(monkeypatch):
    monkeypatch.setattr(image_sources, "MAX_BYTES", 1 << 20)
    stream = io.TextIOWrapper(io.BytesIO(bytes((1 << 20) + 1)))
    monkeypatch.setattr(sys, "stdin", stream)
    assert mistake("-") == "-: more than 1 MiB; give one image"


class Server(BaseHTTPRequestHandler):
    """Answers as its path says."""

    def do_GET(self):
        if self.path == "/image.png":
            self.answer(200, SAMPLE.read_bytes())
        elif self.path == "/large.png":
            self.answer(200, bytes((1 << 20) + 1))
        elif self.path == "/elsewhere.png":
            self.send_response(302)
            self.send_header("Location", "/image.png")
            self.end_headers()
        elif self.path == "/slow.png":
            self.send_response(200)
            self.end_headers()
            for _ in range(20):
                self.wfile.write(b"x" * (1 << 16))
                time.sleep(0.02)
        else:
            self.answer(404, b"no image")

    def answer(self, status, content):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def url(monkeypatch):
    for name in ("GLUON_RESNET_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(image_sources, "MAX_BYTES", 1 << 20)
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("name", ["image", "elsewhere"])
def test_url_is_downloaded(url, name):
    (image,) = named_images(f"{url}/{name}.png")
    assert image.load(image.name) == SAMPLE.read_bytes()


def test_url_that_gives_no_image_in_bounds_says_why(url, monkeypatch):
    assert mistake(f"{url}/none.png") == (
        f"{url}/none.png: HTTP 404 Not Found; give the URL of an image"
    )
    assert mistake(f"{url}/large.png") == (
        f"{url}/large.png: more than 1 MiB; give an image"
    )
    monkeypatch.setattr(image_sources, "MAX_SECONDS", 0.05)
    assert mistake(f"{url}/slow.png") == (
        f"{url}/slow.png: takes more than 0.05 s; give a file"
    )


def test_host_that_does_not_answer_is_told(url, monkeypatch):
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{deaf.getsockname()[1]}/x.png"
        assert mistake(address) == (
            f"{address}: Connection refused; give the URL of an image"
        )
        deaf.listen()
        monkeypatch.setattr(image_sources, "TIMEOUT", (0.2, 0.2))
        assert mistake(address) == (
            f"{address}: no answer in time; try again or give a file"
        )


def test_offline_says_so(monkeypatch):
    monkeypatch.setenv("GLUON_RESNET_OFFLINE", "1")
    assert mistake("https://example.org/x.png") == (
        "https://example.org/x.png: GLUON_RESNET_OFFLINE forbids to download it; unset "
        "that, or give a file"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_folder_that_may_not_be_read_says_so(photos):
    photos.chmod(0)
    try:
        assert mistake("photos").startswith("photos cannot be searched for images (")
    finally:
        photos.chmod(0o700)
