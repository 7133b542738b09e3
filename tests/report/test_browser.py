"""The page in a real browser: it loads nothing, fits its window, and shows its images."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from mmjax import report

REQUIRED = "MMJAX_REQUIRE_BROWSER"  # set where a missing browser must fail the tests
BROWSER = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome", "chrome")
        if (path := shutil.which(name))
    ),
    None,
)

pytestmark = pytest.mark.skipif(
    BROWSER is None and not os.environ.get(REQUIRED),
    reason=f"no chromium or chrome on the path (set {REQUIRED}=1 to make this an error)",
)


def browse(folder: Path, page: Path, *options: str) -> str:
    assert BROWSER is not None, f"{REQUIRED} is set, and there is no chromium or chrome on the path"
    flags = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--hide-scrollbars",
    )
    command = [BROWSER, *flags, f"--user-data-dir={folder / 'browser'}", *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return done.stdout


def measured(page: Path, folder: Path) -> Path:
    """A copy of the page with a script that writes down what the browser made of it. The page itself allows no script at all."""
    script = """<script>addEventListener("load", () => {
        const images = [...document.images];
        document.title = JSON.stringify({
            wide: document.documentElement.scrollWidth > innerWidth,
            broken: images.filter(image => image.complete && !image.naturalWidth).length,
            images: images.length,
            charts: [...document.querySelectorAll(".chart svg")].filter(svg => svg.getBoundingClientRect().width > 0).length,
            loaded: performance.getEntriesByType("resource").filter(entry => !entry.name.startsWith("data:")).map(entry => entry.name),
        });
    });</script>"""
    text = page.read_text(encoding="utf-8").replace(
        "style-src 'unsafe-inline'", "style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    )
    copy = folder / "measured.html"
    copy.write_text(
        text.replace("</body>", f"{script}</body>").replace(' loading="lazy"', ""), encoding="utf-8"
    )
    return copy


@pytest.mark.parametrize("width", [pytest.param(1200, marks=pytest.mark.slow), 400])
def test_loads_nothing_and_fits(workdir: Path, tmp_path: Path, width: int) -> None:
    dom = browse(
        tmp_path,
        measured(report.write(workdir), tmp_path),
        "--dump-dom",
        f"--window-size={width},2000",
    )
    title = re.search(r"<title>(.*?)</title>", dom)
    assert (
        title is not None
        and '"wide":false' in title[1]
        and '"broken":0' in title[1]
        and '"loaded":[]' in title[1]
    ), title
    assert '"charts":1' in title[1], "of the two drawings of the chart, the one for this width"


def test_dom_has_its_parts(workdir: Path, tmp_path: Path) -> None:
    dom = browse(tmp_path, report.write(workdir), "--dump-dom")
    assert not re.search(r"""(src|href|data)=["'](?!data:image/png;base64,)""", dom), (
        "nothing refers to anything outside"
    )
    assert len(re.findall("<svg", dom)) >= 8
    assert len(re.findall("<figure", dom)) >= 24
    assert dom.count("<section>") == 8


@pytest.mark.parametrize("width", [1200, pytest.param(400, marks=pytest.mark.slow)])
def test_is_painted(workdir: Path, tmp_path: Path, width: int) -> None:
    image = tmp_path / f"{width}.png"
    browse(tmp_path, report.write(workdir), f"--screenshot={image}", f"--window-size={width},1600")
    pixels = np.asarray(Pillow.open(image).convert("RGB")).astype(int)
    assert pixels.shape == (1600, width, 3)
    assert (pixels[5, 5] > 240).all(), "a light background"
    teal = (abs(pixels - np.array([14, 111, 106])) < 12).all(axis=-1)
    assert teal.sum() > 5_000, "the score and the bars"
    assert (abs(pixels[:, -8:] - pixels[5, 5]) < 3).all(), "nothing reaches into the right margin"
