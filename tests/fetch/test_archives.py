"""Debian packages through apt-get, played by a script."""

import os
import shutil

import pytest

from mmjax.errors import InputError
from mmjax.fetch import archives
from tests.fetch import packages


@pytest.fixture
def deb(tmp_path):
    (tmp_path / "index").mkdir()
    return packages.write_deb(tmp_path / "index", {"usr/share/a": b"a"})


@pytest.fixture
def apt_get(tmp_path, monkeypatch):
    """Writes the script that is found as apt-get."""

    def write(*lines):
        script = tmp_path / "bin" / "apt-get"
        script.parent.mkdir(exist_ok=True)
        script.write_text("\n".join(["#!/bin/sh", *lines]))
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")

    return write


@pytest.fixture
def inbox(tmp_path):
    (tmp_path / "inbox").mkdir()
    return tmp_path / "inbox"


def test_the_version_is_asked_for_and_the_progress_told(deb, apt_get, inbox):
    told = []
    apt_get(
        f'test "$*" = "-qq download {packages.PACKAGE}=1.0" || exit 9',
        "printf half > part",
        "sleep 0.5",
        f"cp {deb} .",
        "rm part",
    )
    path = archives.download(packages.archive_of(deb), inbox, told.append)
    assert path == inbox / packages.DEB and len("half") in told
    archives.verify(packages.archive_of(deb), path)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            ("echo 'E: Unable to locate package x' >&2", "exit 100"),
            r"E: Unable to locate package x \(`apt-get update` as root",
        ),
        (
            ("echo 'E: Failed to fetch x Could not resolve: deb' >&2", "exit 100"),
            "the package index cannot be reached; is this machine online",
        ),
        (("exit 3",), r"apt-get ended with code 3\."),
        (("touch other_2.0_all.deb",), r"apt-get ended with code 0\."),
    ],
    ids=["no index", "offline", "silent", "another file"],
)
def test_what_apt_get_says_is_passed_on(deb, apt_get, inbox, lines, said):
    apt_get(*lines)
    with pytest.raises(
        InputError,
        match=rf"^mmjax-toy-package 1\.0 was not downloaded: {said}(.|\n)*--from=FOLDER\.$",
    ):
        archives.download(packages.archive_of(deb), inbox, lambda arrived: None)


def test_a_full_disk(deb, apt_get, inbox):
    apt_get("echo 'E: Failed to fetch x write (28: No space left on device)'", "exit 100")
    with pytest.raises(
        InputError,
        match=r"^mmjax-toy-package 1\.0 was not downloaded: there is no space left for it in .*inbox\.$",
    ):
        archives.download(packages.archive_of(deb), inbox, lambda arrived: None)


def test_no_apt_get(deb, inbox, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(
        InputError,
        match=r"it is a Debian package, and there is no apt-get here\.\nWhere there is a network, get ",
    ):
        archives.download(packages.archive_of(deb), inbox, lambda arrived: None)
