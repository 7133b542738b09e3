"""Data files as other systems write them, their limits, and folders that no path leads out of."""

import gzip
import json
import os

import numpy as np
import pytest

from mmjax.data.examples import SampleError
from mmjax.data.sources import readers
from mmjax.data.sources.jsonl import JsonlSource
from mmjax.data.sources.llava import LlavaSource
from mmjax.data.sources.readers import ImageFolder, open_records
from mmjax.data.text.templates import TEMPLATES
from mmjax.errors import InputError

RECORDS = [{"text": "caption 0 Ž"}, {"text": "caption 1 😀"}, {"n": [1, {"a": "\u2028"}]}]
LINES = "\n".join(json.dumps(record, ensure_ascii=False) for record in RECORDS)
LIST = json.dumps(RECORDS, ensure_ascii=False, indent=1)


def read(folder, data):
    (folder / "data").write_bytes(data)
    found = open_records(folder / "data")
    return [found[index] for index in range(len(found))]


@pytest.mark.parametrize("text", [LINES, LIST, f"{LINES}\n", LINES.replace("\n", "\r\n")])
@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        ("", "utf-8"),
        *(
            (mark, name)
            for name in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
            for mark in ("\ufeff", "")
        ),
        ("\ufeff", "utf-8"),
    ],
)
def test_text_is_read_in_the_encoding_that_its_first_bytes_tell(tmp_path, text, mark, encoding):
    assert read(tmp_path, (mark + text).encode(encoding)) == RECORDS


def test_lines_may_end_with_carriage_returns_alone(tmp_path):
    for encoding in ("utf-8", "utf-16"):
        assert read(tmp_path, LINES.replace("\n", "\r").encode(encoding)) == RECORDS


def test_files_that_were_put_behind_each_other_have_marks_in_their_midst(tmp_path):
    part = b"\xef\xbb\xbf" + LINES.encode() + b"\r\n"
    assert read(tmp_path, part * 3 + b"\xef\xbb\xbf\r\n") == RECORDS * 3


def test_pieces_of_a_long_line_make_one_record(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "_PIECE", 3)
    assert read(tmp_path, f"\n \n{LINES}\n  \n".encode()) == RECORDS
    assert read(tmp_path, LINES.replace("\n", "\r\n").encode("utf-16")) == RECORDS


def test_text_in_another_encoding_is_named_with_what_to_do(tmp_path):
    with pytest.raises(SampleError, match=r"bad UTF-8: .*iconv -f WINDOWS-1252") as error:
        read(tmp_path, '{"text": "Grüße"}'.encode("cp1252"))
    assert error.value.cause == "bad UTF-8"
    with pytest.raises(SampleError, match="bad UTF-16"):
        read(tmp_path, '{"text": "a'.encode("utf-16") + b"\x00\xd8" + '"}'.encode("utf-16-le"))


def test_half_a_character_spoils_its_own_record(tmp_path):
    lines = [f'{{"text": "{number}"}}\n'.encode("utf-16-le") for number in range(3)]
    (tmp_path / "data").write_bytes(b"\xff\xfe" + lines[0] + b"\x00\xdc" + lines[1] + lines[2])
    found = open_records(tmp_path / "data")
    assert (found[0], found[2]) == ({"text": "0"}, {"text": "2"})
    with pytest.raises(SampleError, match="bad UTF-16"):
        found[1]


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (gzip.compress(LINES.encode()), "gzip.*gunzip"),
        (b"PAR1" + b"\0" * 40, "Parquet"),
        (b"PK\x03\x04" + b"\0" * 40, "zip"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    ],
)
def test_what_is_no_text_is_named(tmp_path, data, what):
    with pytest.raises(InputError, match=f"data cannot be read: .* is .*{what}"):
        read(tmp_path, data)


def test_two_lists_in_one_file_are_refused(tmp_path):
    with pytest.raises(InputError, match="something follows the bracket that ends at byte 4"):
        read(tmp_path, b"[{}]\n[{}]")
    assert read(tmp_path, b"[{}] \n\t") == [{}]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
@pytest.mark.parametrize(("kind", "config"), [("jsonl", JsonlSource), ("llava", LlavaSource)])
def test_a_data_file_that_is_no_regular_file_is_refused(tmp_path, make, kind, config):
    make(tmp_path / "data")
    source = config(kind, str(tmp_path / "data"), str(tmp_path))
    with pytest.raises(InputError, match=r"data cannot be read.*is not a file"):
        source.open(TEMPLATES["plain"])


def test_a_data_file_that_is_gone_ends_with_a_message(tmp_path):
    (tmp_path / "data").write_text(LINES)
    found = open_records(tmp_path / "data")
    (tmp_path / "data").unlink()
    with pytest.raises(InputError, match="cannot be read"):
        found[0]


@pytest.mark.parametrize("written", [LINES, LIST])
def test_a_record_that_is_too_long_is_skipped_without_being_read(tmp_path, monkeypatch, written):
    monkeypatch.setattr(readers, "MAX_RECORD_BYTES", len(json.dumps(RECORDS[0])) + 100)
    data = written.encode().replace(b"caption 1", b"caption 1" * 100)
    (tmp_path / "data").write_bytes(data)
    found = open_records(tmp_path / "data")
    assert (found[0], found[2]) == (RECORDS[0], RECORDS[2])
    with pytest.raises(SampleError, match=r"oversized record: .*data, record \d+: [\d,]+ bytes"):
        found[1]


@pytest.fixture
def tree(tmp_path):
    """images/a.png, images/deep/b.png, elsewhere/c.png."""
    for name in ("images/a.png", "images/deep/b.png", "elsewhere/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def test_paths_within_the_folder_are_taken_however_they_are_written(tree):
    folder = ImageFolder(tree / "images")
    for path in ("a.png", "deep/b.png", "deep/../a.png", str(tree / "images" / "a.png"), "new.png"):
        assert folder.image(path).source == tree / "images" / path
    (tree / "images" / "link.png").symlink_to("deep/b.png")
    (tree / "linked").symlink_to("images")
    assert folder.image("link.png").source.exists()
    assert ImageFolder(tree / "linked").image("a.png").source == tree / "linked" / "a.png"
    assert ImageFolder("/").image(str(tree / "elsewhere" / "c.png")).source.exists()


@pytest.mark.parametrize(
    "path",
    [
        "../elsewhere/c.png",
        "{tree}/elsewhere/c.png",
        "out/c.png",
        "deep/c.png",
        "deep/../out/new.png",
    ],
)
def test_paths_out_of_the_folder_are_unusable_unless_a_setting_says_otherwise(tree, path):
    (tree / "images" / "out").symlink_to(tree / "elsewhere")
    (tree / "images" / "deep" / "c.png").symlink_to("../../elsewhere/c.png")
    path = path.format(tree=tree)
    with pytest.raises(SampleError, match="image_roots") as error:
        ImageFolder(tree / "images").image(path)
    assert error.value.cause == "image outside image_dir"
    allowed = ImageFolder(tree / "images", [str(tree / "elsewhere")])
    assert allowed.image(path).source == tree / "images" / path


def test_a_folder_beside_whose_name_begins_the_same_is_outside(tree):
    (tree / "images2").mkdir()
    with pytest.raises(SampleError, match="outside"):
        ImageFolder(tree / "images").image("../images2/a.png")


def test_links_of_a_cache_of_the_hub_lead_to_its_own_files(tmp_path):
    snapshot = tmp_path / "datasets--o--n" / "snapshots" / "0123"
    (snapshot / "images").mkdir(parents=True)
    (tmp_path / "datasets--o--n" / "blobs").mkdir()
    (tmp_path / "datasets--o--n" / "blobs" / "5").write_bytes(b"")
    (snapshot / "images" / "a.png").symlink_to("../../../blobs/5")
    (snapshot / "images" / "b.png").symlink_to("../../../../other/5")
    for folder in (snapshot, snapshot / "images"):
        assert ImageFolder(folder).image(str(snapshot / "images" / "a.png")).source.exists()
        with pytest.raises(SampleError, match="outside"):
            ImageFolder(folder).image(str(snapshot / "images" / "b.png"))


def test_sources_keep_to_their_folders(tree):
    outside = str(tree / "elsewhere" / "c.png")
    talk = [{"from": "human", "value": "<image>what?"}, {"from": "gpt", "value": "red"}]
    (tree / "talk.json").write_text(json.dumps([{"image": outside, "conversations": talk}]))
    (tree / "set.jsonl").write_text(json.dumps({"image": outside, "text": "red"}))
    for config in (
        LlavaSource("llava", str(tree / "talk.json"), str(tree / "images")),
        JsonlSource("jsonl", str(tree / "set.jsonl"), str(tree / "images")),
    ):
        with pytest.raises(SampleError, match=r"(talk.json|set.jsonl):1: .*image_roots"):
            config.open(TEMPLATES["plain"])[0]
        roots = (str(tree / "elsewhere"),)
        allowed = type(config)(config.kind, config.path, config.image_dir, image_roots=roots)
        assert len(allowed.open(TEMPLATES["plain"])[0].segments()) > 1
    missing = JsonlSource("jsonl", str(tree / "set.jsonl"), image_roots=(str(tree / "none"),))
    with pytest.raises(InputError, match="image_roots: there is no folder"):
        missing.open(TEMPLATES["plain"])
    source = JsonlSource("jsonl", str(tree / "set.jsonl"), str(tree / "images"))
    with pytest.raises(SampleError, match="outside"):
        source.open(TEMPLATES["plain"]).captioned(0)


def test_a_path_with_a_zero_byte_is_no_path(tree):
    with pytest.raises(SampleError, match="bad image"):
        ImageFolder(tree).image("a\0.png")


def test_spans_are_those_of_the_file(tmp_path):
    data = b"\xff\xfe" + '{"a": "é"}\n{}'.encode("utf-16-le")
    (tmp_path / "data").write_bytes(data)
    np.testing.assert_array_equal(open_records(tmp_path / "data").spans, [[2, 24], [24, 28]])
