# SPDX-License-Identifier: Apache-2.0
"""Which files of a folder are images."""

import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from gluon_resnet.errors import InputError
from gluon_resnet.image_files import image_files
from gluon_resnet.preprocess import FORMATS, IMAGE_SUFFIXES


def make(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def found(folder):
    return [str(path.relative_to(folder)) for path in image_files(folder)]


def test_suffixes_are_those_of_the_formats():
    Image.init()
    known = {
        suffix
        for suffix, format in Image.registered_extensions().items()
        if format in FORMATS
    }
    # Floats of no known range.
    assert set(IMAGE_SUFFIXES) == known - {".pfm"}


def test_images_come_sorted_name_by_name_from_any_depth(tmp_path, caplog):
    make(tmp_path, "b.png", "a/2.JPG", "a/10.Jpeg", "a/b/c/x.webp", "Z.tif", "a.gif")
    assert found(tmp_path) == [
        *("Z.tif", "a/10.Jpeg", "a/2.JPG", "a/b/c/x.webp", "a.gif", "b.png")
    ]
    assert not caplog.records


def test_folder_named_like_an_image_is_a_folder(tmp_path, caplog):
    make(tmp_path, "holiday.png/1.png")
    (tmp_path / "empty.jpg").mkdir()
    assert found(tmp_path) == ["holiday.png/1.png"]
    assert not caplog.records


def test_hidden_names_and_other_files_are_left_out_and_counted(tmp_path, caplog):
    make(
        tmp_path,
        *("1.png", "._1.png", ".DS_Store", "notes.txt", "archive.jpg.zip", "jpg"),
        *("__MACOSX/._1.png", "__MACOSX/2.png", "a/.ipynb_checkpoints/1.png"),
    )
    os.mkfifo(tmp_path / "pipe.png")
    assert found(tmp_path) == ["1.png"]
    (message,) = caplog.messages
    assert message == (
        f"{tmp_path}: left out 4 hidden, such as {tmp_path}/.DS_Store; "
        f"4 not named like an image, such as {tmp_path}/archive.jpg.zip"
    )


def test_folder_asked_for_may_be_hidden_itself(tmp_path, monkeypatch):
    make(tmp_path, ".cache/1.png")
    assert found(tmp_path / ".cache") == ["1.png"]
    monkeypatch.chdir(tmp_path)
    assert list(image_files(Path())) == []
    assert list(image_files(Path(".cache"))) == [Path(".cache/1.png")]


def test_links_are_followed_each_folder_once(tmp_path, caplog):
    make(tmp_path, "real/1.png", "a/2.png")
    folder = tmp_path / "a"
    (folder / "link.png").symlink_to("../real/1.png")
    (folder / "linked").symlink_to("../real")
    (folder / "again").symlink_to("linked")
    (folder / "circle").symlink_to(".")
    (folder / "sub").mkdir()
    (folder / "sub" / "up").symlink_to("..")
    assert found(folder) == ["2.png", "again/1.png", "link.png"]
    assert not caplog.records


def test_link_to_the_folder_itself_is_searched(tmp_path):
    make(tmp_path, "real/1.png")
    (tmp_path / "link").symlink_to("real")
    assert found(tmp_path / "link") == ["1.png"]


def test_link_out_of_the_folder_ends_where_the_search_began(tmp_path):
    make(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "a" / "out").symlink_to("..")
    assert found(tmp_path / "a") == ["1.png", "out/b/2.png"]


def test_links_to_nothing_are_left_out_and_counted(tmp_path, caplog):
    make(tmp_path, "1.png")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    assert found(tmp_path) == ["1.png"]
    assert caplog.messages == [
        f"{tmp_path}: left out 2 linked to nothing, such as {tmp_path}/gone.png"
    ]


def test_many_links_to_one_folder_cost_no_time(tmp_path):
    for number in range(30):
        folder = tmp_path / f"{number:02}"
        folder.mkdir()
        for name in "abc":
            (folder / name).symlink_to(f"../{number + 1:02}")
    make(tmp_path, "30/1.png")
    assert len(found(tmp_path / "00")) == 1


def test_deeper_folders_than_python_has_stack_are_searched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    depth = sys.getrecursionlimit() + 100
    for _ in range(depth):
        Path("a").mkdir()
        os.chdir("a")
    Path("1.png").touch()
    os.chdir(tmp_path)
    assert len(list(image_files(Path()))) == 1
    for _ in range(depth):
        os.chdir("a")
    Path("1.png").unlink()
    for _ in range(depth):
        os.chdir("..")
        Path("a").rmdir()


def test_name_that_is_no_utf8_is_found(tmp_path, caplog):
    (tmp_path / os.fsdecode(b"caf\xe9.png")).touch()
    (tmp_path / os.fsdecode(b"caf\xe9\n.txt")).touch()
    (path,) = image_files(tmp_path)
    assert os.fsencode(path.name) == b"caf\xe9.png"
    (message,) = caplog.messages
    assert message.endswith(r"such as " + f"{tmp_path}/" + r"caf\udce9\n.txt")


def test_folder_that_cannot_be_searched_is_refused(tmp_path):
    make(tmp_path, "1.png")
    for path, why in (("1.png", "Not a directory"), ("x", "No such file or directory")):
        with pytest.raises(InputError) as error:
            list(image_files(tmp_path / path))
        assert str(error.value) == (
            f"{tmp_path / path} cannot be searched for images ({why}): give a folder "
            "that you may read"
        )
