"""Heat maps tint what gets more than its share, and thumbnails survive what they are given."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from mmjax.report.images import heat, thumbnail

WHITE = np.full((16, 16, 3), 255, np.uint8)


def redness(weights: np.ndarray, window: int) -> np.ndarray:
    """Red minus blue in the middle of each patch: 0 where there is no tint."""
    shown = heat(WHITE, weights, window, side=16 * len(weights)).astype(int)
    middle = shown[8::16, 8::16]
    return middle[..., 0] - middle[..., 2]


@pytest.mark.parametrize("window", [1, 2, 4])
def test_equal_weights_have_no_tint(window: int) -> None:
    assert (redness(np.full((4, 4), 1 / window**2), window) == 0).all()


def test_the_tint_is_where_the_weight_is() -> None:
    weights = np.full((4, 4), 0.25)
    weights[0:2, 2:4] = [[0.0, 1.0], [0.0, 0.0]]  # one window of 2 x 2 looks at one patch
    shown = redness(weights, 2)
    assert np.argwhere(shown).tolist() == [[0, 3]]
    softer = weights.copy()
    softer[0:2, 2:4] = [[0.1, 0.5], [0.2, 0.2]]
    assert 0 < redness(softer, 2)[0, 3] < shown[0, 3]


def test_thumbnails(tmp_path: Path) -> None:
    Pillow.new("RGBA", (400, 200), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (thumbnail(tmp_path / "clear.png", "a <image>") or "").startswith(
        '<img src="data:image/png;base64,'
    )
    assert "a &lt;image&gt;" in (thumbnail(tmp_path / "clear.png", "a <image>") or "")
    (tmp_path / "broken.png").write_bytes((tmp_path / "clear.png").read_bytes()[:60])
    (tmp_path / "text.png").write_text("no image")
    assert [
        thumbnail(tmp_path / name, "") for name in ("broken.png", "text.png", "none.png", ".")
    ] == [None] * 4
