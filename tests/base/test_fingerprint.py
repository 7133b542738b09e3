"""A file that holds something else is noticed; one that was touched or copied is the same."""

import os
import shutil

import pytest

from mmjax.base.fingerprint import GONE, changes, fingerprint, fingerprints


def test_the_time_of_a_file_is_no_part_of_it(tmp_path):
    (tmp_path / "a").write_bytes(b"some text")
    before = fingerprint(tmp_path / "a")
    os.utime(tmp_path / "a", (1, 1))
    assert fingerprint(tmp_path / "a") == before
    shutil.copy(tmp_path / "a", tmp_path / "b")
    assert fingerprint(tmp_path / "b") == before


@pytest.mark.parametrize("content", [b"some texu", b"some tex", b"some text ", b""])
def test_any_other_content_is_another_file(tmp_path, content):
    (tmp_path / "a").write_bytes(b"some text")
    (tmp_path / "b").write_bytes(content)
    assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "b")


@pytest.mark.parametrize("place", [0, 64 * 1024 - 1, 3 * 2**20 // 2, 3 * 2**20 - 1])
def test_of_a_long_file_beginning_end_and_pieces_between_are_read(tmp_path, place):
    content = bytearray(3 * 2**20)
    (tmp_path / "a").write_bytes(content)
    before = fingerprint(tmp_path / "a", whole=2**20)
    content[place] = 1
    (tmp_path / "a").write_bytes(content)
    changed = fingerprint(tmp_path / "a", whole=2**20) != before
    assert changed is (place != 3 * 2**20 // 2)  # which lies between two of its sixteen pieces
    assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "a", whole=2**20)


def test_what_is_no_file_is_gone_and_a_pipe_blocks_nobody(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("none", "pipe", "."):
        assert fingerprint(tmp_path / name) == GONE


def test_a_copy_of_a_whole_folder_has_the_same_fingerprints(tmp_path):
    (tmp_path / "one" / "deep").mkdir(parents=True)
    for name in ("a.png", "deep/b.png"):
        (tmp_path / "one" / name).write_text(name)
    copy = shutil.copytree(tmp_path / "one", tmp_path / "elsewhere" / "two")
    found = [
        fingerprints([folder / "a.png", folder / "deep" / "b.png", folder / "a.png"])
        for folder in (tmp_path / "one", copy)
    ]
    assert found[0] == found[1] and list(found[0]) == ["a.png", "deep/b.png"]
    assert fingerprints([]) == {}


def test_every_change_is_said_in_words():
    before = {"a": "10 aa", "b": "20 bb", "c": "1 cc", "d": "3 dd", "e": GONE}
    now = {"a": "10 ab", "b": "1021 bb", "c": GONE, "e": "5 ee", "d": "3 dd", "f": GONE}
    assert changes(before, now) == [
        "a has other contents of the same size",
        "b has 1,021 bytes, not 20",
        "c is gone",
        "e is new",
    ]
    assert changes(before, before) == []
