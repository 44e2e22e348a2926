# SPDX-License-Identifier: Apache-2.0
"""Whole files or none, and one run in a folder."""

import errno
import threading
from pathlib import Path

import pytest

from gluon_resnet.errors import InputError
from gluon_resnet.files import DiskFull, check_writable, locked, replacing


def test_folder_is_made_and_left_as_it_was(tmp_path):
    folder = tmp_path / "a" / "b"
    for _ in range(2):
        with locked(folder):
            assert folder.is_dir()
        assert list(folder.iterdir()) == []


def test_second_run_is_refused_and_harms_nothing(tmp_path):
    with locked(tmp_path):
        for _ in range(2):
            with pytest.raises(InputError) as error, locked(tmp_path):
                pass
            assert str(error.value) == (
                f"another run is at work in {tmp_path}: wait for it or choose another "
                "folder"
            )
    with locked(tmp_path):
        pass


def test_lock_ends_where_the_block_fails(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError
    with locked(tmp_path):
        pass


def test_lock_of_a_file_that_was_removed_meanwhile_is_no_lock(tmp_path, monkeypatch):
    """A run opens the file, the one before removes it, a third one makes another."""
    first, opened = locked(tmp_path), Path.open
    first.__enter__()

    def open_late(path, *arguments):
        file = opened(path, *arguments)
        monkeypatch.undo()
        first.__exit__(None, None, None)
        return file

    monkeypatch.setattr(Path, "open", open_late)
    with locked(tmp_path):
        with pytest.raises(InputError), locked(tmp_path):
            pass


def test_many_runs_work_one_at_a_time(tmp_path):
    at_work, most, runs = [], [], []

    def run():
        for _ in range(300):
            try:
                with locked(tmp_path):
                    at_work.append(1)
                    most.append(len(at_work))
                    runs.append(1)
                    at_work.pop()
            except InputError:
                pass

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(runs) >= 300
    assert max(most) == 1


def test_folder_that_cannot_be_made_is_refused(tmp_path):
    file = tmp_path / "a"
    file.touch()
    with pytest.raises(InputError) as error, locked(file):
        pass
    assert str(error.value) == (
        f"cannot write into {file}: File exists; choose a folder that you may write to"
    )


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        # As MXNet says it.
        RuntimeError("Traceback ...: Check failed: FileStream.Write incomplete"),
    ],
)
@pytest.mark.parametrize(
    "is_there, kept",
    [(False, "it is not there"), (True, "the file that was there is kept")],
)
def test_full_disk_is_one_line_that_says_what_is_kept(tmp_path, error, is_there, kept):
    path = tmp_path / "a.params"
    if is_there:
        path.write_text("old")
    with pytest.raises(DiskFull) as refusal, replacing(path) as part:
        part.write_text("ne")
        raise error
    assert str(refusal.value) == (
        f"cannot write {path}: No space left on device; make room, {kept}"
    )
    assert [*tmp_path.iterdir()] == [path] * is_there


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "a.params"):
        1 / 0  # noqa: B018
    with pytest.raises(PermissionError), replacing(tmp_path / "a.params"):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_writing_is_tried_before_the_work(tmp_path):
    check_writable(tmp_path / "new" / "a.png")
    assert [*tmp_path.rglob("*")] == [tmp_path / "new"]
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"^cannot write .*: (File exists|Not a dir)"):
        check_writable(tmp_path / "file" / "a.png")


def test_name_may_be_as_long_as_the_system_allows(tmp_path):
    path = tmp_path / f"{'ä' * 125}.png"
    with replacing(path) as part:
        part.touch()
    assert [*tmp_path.iterdir()] == [path]
