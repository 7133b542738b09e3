"""From a Debian package to images with captions."""

import json

import pytest

from mmjax.errors import InputError
from mmjax.fetch import tuxpaint_stamps
from tests.fetch import packages

STAMPS = "usr/share/tuxpaint/stamps"
FILES = {
    f"{STAMPS}/animals/zebu.png": b"image of a zebu",
    f"{STAMPS}/animals/zebu.ogg": b"sound",
    f"{STAMPS}/animals/zebu.txt": b"A zebu.\nde.utf8=Ein Zebu.\n",
    f"{STAMPS}/animals/zebu_desc.ogg": b"sound",
    f"{STAMPS}/animals/silent.png": b"no caption",
    f"{STAMPS}/animals/empty.png": b"no caption either",
    f"{STAMPS}/animals/empty.txt": b"  \nde.utf8=Leer.\n",
    f"{STAMPS}/town/bell.svg": b"not a PNG",
    f"{STAMPS}/town/bell.txt": b"A bell.\n",
    f"{STAMPS}/town/café.txt": "  A café, “open”.  \n".encode(),
    f"{STAMPS}/town/café.png": b"image of a cafe",
    "usr/share/doc/tuxpaint-stamps-default/copyright": b"GPL-2",
    "usr/share/elsewhere/image.png": b"elsewhere",
}


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "made"
    made.mkdir()
    return made


def test_images_with_captions_and_nothing_else(tmp_path, folder):
    tuxpaint_stamps.unpack(packages.write_deb(tmp_path, FILES), folder)
    lines = [
        json.loads(line)
        for line in (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert lines == [
        {"image": "images/animals/zebu.png", "text": "A zebu."},
        {"image": "images/town/café.png", "text": "A café, “open”."},
    ]
    assert (folder / lines[0]["image"]).read_bytes() == b"image of a zebu"
    found = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )
    assert found == [
        "captions.jsonl",
        "copyright",
        "images/animals/zebu.png",
        "images/town/café.png",
    ]


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda data: data[:-200], ""),
        (lambda data: b"?" + data[1:], "it is no Debian package"),
        (lambda data: data.replace(b"data.tar.xz", b"data.tar.gz"), "it holds no data.tar.xz"),
        (lambda data: data.replace(b"\xfd7zXZ", b"\xfd7zXX"), ""),
    ],
    ids=["short", "other", "other compression", "damaged"],
)
def test_what_is_no_such_package(tmp_path, folder, harm, said):
    deb = packages.write_deb(tmp_path, FILES)
    deb.write_bytes(harm(deb.read_bytes()))
    with pytest.raises(InputError, match=f"{packages.DEB} cannot be unpacked: .*{said}"):
        tuxpaint_stamps.unpack(deb, folder)


def test_paths_that_lead_out(tmp_path, folder):
    name = f"{STAMPS}/../../outside.png"
    with pytest.raises(InputError, match="outside the destination"):
        tuxpaint_stamps.unpack(packages.write_deb(tmp_path, {name: b"x"}), folder)
    assert not (tmp_path / "outside.png").exists()


def test_a_caption_that_is_no_text(tmp_path, folder):
    files = {f"{STAMPS}/a.txt": b"\xff", f"{STAMPS}/a.png": b""}
    with pytest.raises(InputError, match="utf-8"):
        tuxpaint_stamps.unpack(packages.write_deb(tmp_path, files), folder)
