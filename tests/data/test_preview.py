"""The preview of a row, as text and as an image."""

import numpy as np
import pytest
from PIL import Image as Pillow

from mmjax.data.examples import Example, Special, Text
from mmjax.data.packing.layout import Row, preview, save_preview


@pytest.fixture
def rows(pack, image, question):
    examples = [
        Example((image(200),), (question(2, 1), question(1, 2, 5)), "shared"),
        Example(
            (),
            (
                (
                    Special("bos"),
                    Text(" w9\n"),
                    image(-1),
                    Text(" w8", loss=True),
                    Special("eos", loss=True),
                ),
            ),
            "inside",
        ),
    ]
    return pack({"set": examples}, train=False)


def test_text(rows, tokenizer):
    assert preview(rows[0], tokenizer).splitlines() == [
        "18 of 22 tokens, 4 segments, 1 of 2 images, 5 targets",
        "segment 1, positions 0-2        | <image 0: 3 visual tokens>",
        "segment 2 sees 1, positions 3-6 | <bos> w0 w1[ w2][<eos>]",
        "segment 3 sees 1, positions 3-6 | <bos> w5[ w6][ w7][<eos>]",
        "segment 4, positions 0-6        | <bos> w9\\n<image 1: 3 visual tokens, unreadable and masked> w8",
    ]


def test_a_wrong_target_shows(rows, tokenizer):
    """What is in brackets are the targets themselves, not the tokens that ought to be the targets."""
    row = rows[0]
    place = int(np.flatnonzero(row.targets == tokenizer.encode(" w6")[0])[0])
    row.targets[place] = tokenizer.encode(" w39")[0]
    assert "<bos> w5[ w39][ w7][<eos>]" in preview(row, tokenizer)


def test_special_tokens_without_a_role_are_told_apart_by_number(tokenizer, rows):
    row = rows[0]
    row.tokens[3] = tokenizer.pad
    assert "<pad> w0 w1" in preview(row, tokenizer)


def test_image(rows, tokenizer, tmp_path):
    save_preview(rows[0], tokenizer, tmp_path / "row.png")
    drawn = np.array(Pillow.open(tmp_path / "row.png"))
    assert np.all(drawn[16:240, 16:240] == 200), "the image, large"
    assert tuple(drawn[260, 20]) == (234, 238, 242), "the masked one, in grey"
    assert (drawn == (172, 238, 187)).all(-1).any(), "tinted targets"
    rows[0].targets.fill(-1)
    blank = rows[0]
    blank.targets.fill(-1)
    save_preview(blank, tokenizer, tmp_path / "row.png")
    assert not (np.array(Pillow.open(tmp_path / "row.png")) == (172, 238, 187)).all(-1).any()


def test_long_texts_wrap_inside_the_image(pack, question, tokenizer, tmp_path):
    rows = pack(
        {"set": [Example((), (question(150, 50),), "long")]}, text_length=210, images_per_row=0
    )
    save_preview(rows[0], tokenizer, tmp_path / "row.png")
    drawn = np.array(Pillow.open(tmp_path / "row.png"))
    assert drawn.shape[0] > 200 and np.all(drawn[:, -16:] == 255) and np.all(drawn[-16:] == 255)


def test_an_empty_row(rows, tokenizer, tmp_path):
    row = Row.empty(rows.shape)
    assert preview(row, tokenizer) == "0 of 22 tokens, 0 segments, 0 of 2 images, 0 targets"
    save_preview(row, tokenizer, tmp_path / "row.png")
