"""Files that only name the one that is meant, because its content was not fetched: said by name, with the command that fetches it."""

import os

import pytest

from mmjax.base.files import pointer_to, read_object, read_regular
from mmjax.errors import InputError

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 499723\n"
HAWSER = LFS.replace(b"git-lfs", b"hawser")
ANNEX = b"/annex/objects/SHA256E-s499723--" + b"0" * 64 + b".json\n"
# What a link is, on a disk that has none.
ANNEX_LINK = b"../.git/annex/objects/Xk/7z/SHA256E-s499723--0.json/SHA256E-s499723--0.json"
XET = b"# xet version 0\nfilesize = 499723\nhash = '0'\n"
POINTERS = [
    (LFS, "Git LFS", "git lfs pull"),
    (HAWSER, "Git LFS", "git lfs pull"),
    (ANNEX, "git-annex", "git annex get"),
    (ANNEX_LINK, "git-annex", "git annex get"),
    (XET, "Xet", "git xet checkout"),
]


@pytest.mark.parametrize(("content", "name", "command"), POINTERS)
def test_a_pointer_is_named(tmp_path, content, name, command):
    file = tmp_path / "config.json"
    file.write_bytes(content)
    for read in (read_regular, read_object):
        with pytest.raises(InputError, match=f"config.json is a pointer of {name}.*`{command}`"):
            read(file)


def test_a_link_of_git_annex_to_what_was_not_fetched(tmp_path):
    (tmp_path / "config.json").symlink_to(os.fsdecode(ANNEX_LINK))
    with pytest.raises(InputError, match=r"is a pointer of git-annex.*`git annex get`"):
        read_regular(tmp_path / "config.json")
    (tmp_path / "other.json").symlink_to("nothing.json")
    with pytest.raises(InputError, match="cannot be opened: No such file"):
        read_regular(tmp_path / "other.json")


@pytest.mark.parametrize(
    "content", [b"", b"{}", b'{"a": "annex/objects/"}', b"version 1", LFS + b" " * 4096]
)
def test_what_looks_similar_is_none(tmp_path, content):
    file = tmp_path / "file"
    file.write_bytes(content)
    assert pointer_to(file, content) is None
    assert read_regular(file) == content
