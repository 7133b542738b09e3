"""Folders that appear whole or not at all."""

import errno
import threading

import pytest

from mmjax.base.files import atomic_directory, check_free
from mmjax.errors import InputError


def test_a_folder_appears_whole(tmp_path):
    with atomic_directory(tmp_path / "a" / "b") as draft:
        draft.mkdir()
        (draft / "file").write_text("x")
        assert not (tmp_path / "a" / "b").exists()
    assert (tmp_path / "a" / "b" / "file").read_text() == "x"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, InputError("no")])
def test_a_failure_leaves_nothing(error, tmp_path):
    with (
        pytest.raises(error if isinstance(error, type) else type(error)),
        atomic_directory(tmp_path / "a" / "b") as draft,
    ):
        draft.mkdir()
        (draft / "file").write_text("x")
        raise error
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_the_users_to_know(tmp_path):
    with (
        pytest.raises(InputError, match="cannot be written: No space left"),
        atomic_directory(tmp_path / "a") as draft,
    ):
        draft.mkdir()
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_threads_that_go_on_writing_do_not_bring_it_back(tmp_path):
    stop = threading.Event()

    def write(folder):
        while not stop.is_set():
            try:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "file").write_text("x")
            except NotADirectoryError:
                return  # as a reader or writer of files does at the first error that it cannot mend
            except OSError:
                continue

    with pytest.raises(KeyboardInterrupt), atomic_directory(tmp_path / "a") as draft:
        thread = threading.Thread(target=write, args=(draft,))
        thread.start()
        while not (draft / "file").exists():
            pass
        raise KeyboardInterrupt
    stop.set()
    thread.join()
    assert not list(tmp_path.iterdir())


def test_what_is_there_stays(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for path in (tmp_path, tmp_path / "file", tmp_path / "link"):
        with pytest.raises(InputError, match="exists already"):
            check_free(path)
    with atomic_directory(tmp_path / "b") as draft:
        draft.mkdir()
        (tmp_path / "b").mkdir()
    assert (tmp_path / "b").is_dir()


def test_a_place_where_no_folder_can_be(tmp_path):
    (tmp_path / "file").write_text("mine")
    with (
        pytest.raises(InputError, match="cannot be written"),
        atomic_directory(tmp_path / "file" / "a"),
    ):
        pass


@pytest.mark.parametrize("name", ["x" * 300, "a/" * 2500 + "b", "latin-1-\udce9"])
def test_a_name_that_no_folder_can_have_is_one_message(tmp_path, name):
    with (
        pytest.raises(InputError, match=r"cannot be written|is not UTF-8"),
        atomic_directory(tmp_path / name),
    ):
        pass
    assert not list(tmp_path.iterdir())
