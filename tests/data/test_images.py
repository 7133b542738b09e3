"""Images of every kind become upright RGB squares; unusable ones say why."""

import io
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from mmjax.data.examples import SampleError
from mmjax.data.images import decode
from mmjax.data.images.decode import ImageCache, load_image

RED = (255, 0, 0)


def encoded(image, kind="PNG", **options):
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def noise(height=12, width=20):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def test_a_image_of_the_right_size_is_unchanged_from_array_bytes_and_path(tmp_path):
    pixels = noise(16, 16)
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Pillow.fromarray(pixels)))
    for source in (pixels, path.read_bytes(), path, str(path)):
        loaded = load_image(source, 16)
        assert loaded.dtype == np.uint8 and loaded.flags.writeable
        np.testing.assert_array_equal(loaded, pixels)


def test_stretch_uses_the_whole_image_and_crop_its_middle():
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = RED
    assert (load_image(pixels, 10, resize="crop") == RED).all()
    stretched = load_image(pixels, 9)
    assert (
        stretched.shape == (9, 9, 3)
        and (stretched[:, 4] == RED).all()
        and not stretched[:, [0, 8]].any()
    )


def test_shrinking_averages_over_all_pixels():
    checkerboard = np.indices((64, 64)).sum(0) % 2 * 255
    small = load_image(np.repeat(checkerboard[..., None], 3, -1).astype(np.uint8), 8)
    # Without antialiasing each pixel would be 0 or 255.
    assert abs(small.astype(int) - 127.5).max() < 8


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_are_white(mode):
    image = Pillow.new("RGBA", (4, 4), (0, 0, 0, 0)).convert(mode)
    data = encoded(image, transparency=0) if mode == "P" else encoded(image)
    assert (load_image(data, 4) == 255).all()


def test_alpha_blends_with_white():
    assert (
        abs(load_image(np.full((4, 4, 4), (0, 0, 0, 128), np.uint8), 4).astype(int) - 127).max()
        <= 1
    )


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "PNG"), ("1", "PNG"), ("CMYK", "JPEG"), ("P", "GIF"), ("L", "WEBP")]
)
def test_other_colour_modes_become_rgb(mode, kind):
    pixels = load_image(encoded(Pillow.new("RGB", (8, 8), "white").convert(mode), kind), 4)
    assert pixels.shape == (4, 4, 3) and pixels.min() > 250


def test_sixteen_bits_of_grey_are_scaled_not_clipped():
    pixels = load_image(encoded(Pillow.fromarray(np.full((4, 4), 0x8000, np.uint16))), 4)
    assert (pixels == 0x80).all()


def test_exif_orientation_is_applied():
    exif = Pillow.Exif()
    exif[0x0112] = 6  # shown turned by a quarter, clockwise
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8] = 255  # white above
    upright = load_image(encoded(Pillow.fromarray(pixels), "JPEG", exif=exif, quality=95), 16)
    assert upright[:, 12:].min() > 200 and upright[:, :4].max() < 50  # white right


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_truncated_images_are_corrupt(kind):
    data = encoded(Pillow.fromarray(noise(64, 64)), kind)
    with pytest.raises(SampleError, match="corrupt image"):
        load_image(data[: len(data) // 2], 8)


PNG = encoded(Pillow.fromarray(noise()))
JPEG = encoded(Pillow.fromarray(noise()), "JPEG")


@settings(max_examples=60)
@given(st.sampled_from([PNG, JPEG]), st.data())
def test_damaged_bytes_give_a_image_or_a_sample_error(original, data):
    damaged = bytearray(original)
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert load_image(bytes(damaged), 8).shape == (8, 8, 3)
    except SampleError as error:
        assert error.cause in ("corrupt image", "oversized image")


@pytest.mark.parametrize(
    "source", [b"", b"no image", np.zeros((2, 2, 5), np.uint8), np.zeros((0, 4, 3), np.uint8)]
)
def test_what_is_no_image_is_corrupt(source):
    with pytest.raises(SampleError, match="corrupt image"):
        load_image(source, 8)


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(SampleError, match=r"missing image: .*nowhere\.png"):
        load_image(tmp_path / "nowhere.png", 8)


def test_an_oversized_image_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 12 * 20 - 1)
    monkeypatch.setattr(Pillow.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(SampleError, match=r"oversized image: .*20 x 12"):
        load_image(PNG, 8)


def test_the_cache_decodes_a_file_once_and_shares_it_read_only(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    cache = ImageCache()
    first = cache.load(path, 8)
    np.testing.assert_array_equal(first, load_image(path, 8))
    monkeypatch.setattr(decode, "load_image", lambda *args, **kwargs: pytest.fail("decoded again"))
    assert cache.load(path, 8) is first
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 0


def test_the_cache_tells_sizes_apart_and_never_exceeds_its_bound(tmp_path):
    cache = ImageCache(max_bytes=2 * 8 * 8 * 3)
    for name in "abc":
        (tmp_path / name).write_bytes(PNG)
    kept = [cache.load(tmp_path / name, 8) for name in "abc"]
    assert [
        cache.load(tmp_path / name, 8) is pixels for name, pixels in zip("abc", kept, strict=True)
    ] == [True, True, False]
    assert cache.load(tmp_path / "a", 4).shape == (4, 4, 3)


def test_a_cache_arrives_in_another_process_empty_with_its_bound(tmp_path):
    (tmp_path / "a").write_bytes(PNG)
    cache = ImageCache(max_bytes=8 * 8 * 3)
    kept = cache.load(tmp_path / "a", 8)
    copy = pickle.loads(pickle.dumps(cache))
    again = copy.load(tmp_path / "a", 8)
    assert again is not kept and copy.load(tmp_path / "a", 8) is again
