"""Images of every kind become upright RGB squares; unusable ones say why."""

import io
import os
import pickle
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from PIL import ImageOps

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


def test_twelve_bits_of_grey_and_white_that_is_zero_are_what_their_tags_say():
    """Pillow writes neither; here they are 16 bits with another tag."""
    ramp = np.linspace(0, 4095, 16, dtype=np.uint16)[None].repeat(16, 0)
    tiff = encoded(Pillow.fromarray(ramp << 4), "TIFF")
    photometric = tiff.index(struct.pack("<HHI", 262, 3, 1)) + 8
    zero = tiff[:photometric] + b"\0" + tiff[photometric + 1 :]
    np.testing.assert_array_equal(load_image(tiff, 16)[0, :, 0], ramp[0] >> 4)
    np.testing.assert_array_equal(load_image(zero, 16)[0, :, 0], 255 - (ramp[0] >> 4))
    packed = (ramp[:, 0::2].astype(np.uint32) << 12) | ramp[:, 1::2]
    twelve = packed.astype(">u4").reshape(-1, 1).view(np.uint8)[:, 1:].tobytes()
    bits = tiff.index(struct.pack("<HHI", 258, 3, 1)) + 8
    start = struct.unpack("<I", tiff[tiff.index(struct.pack("<HHI", 273, 4, 1)) + 8 :][:4])[0]
    data = bytearray(tiff)
    data[bits] = 12
    data[start : start + len(twelve)] = twelve
    np.testing.assert_array_equal(load_image(bytes(data), 16)[0, :, 0], ramp[0] >> 4)


@pytest.mark.parametrize("white", [255, 1023, 65535])
def test_a_portable_graymap_says_what_is_white(white):
    size = ">u2" if white > 255 else "u1"
    pixels = np.array([[0, white // 2, white]] * 3, size).tobytes()
    found = load_image(b"P5 3 3 %d\n" % white + pixels, 3)[0, :, 0].astype(int)
    assert abs(found - (0, 127, 255)).max() <= 1


@pytest.mark.parametrize(
    "pixels",
    [
        np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8),
        np.linspace(0, 255, 64, dtype=np.float32).reshape(8, 8),
        np.full((8, 8), 70_000, np.int32),
        np.full((8, 8), 200, np.int32),
    ],
)
def test_pixels_of_unknown_range_are_unusable(pixels):
    for source in (pixels, pixels.astype(np.float64), encoded(Pillow.fromarray(pixels), "TIFF")):
        with pytest.raises(SampleError) as error:
            load_image(source, 8)
        assert error.value.cause == "pixels of unknown range"


@pytest.mark.parametrize("kind", ["PFM", "FITS", "signed"])
def test_so_are_those_of_formats_for_measurements(kind):
    if kind == "PFM":
        data = encoded(Pillow.fromarray(np.ones((4, 4), np.float32)), "PPM")
    elif kind == "FITS":
        cards = {"SIMPLE": "T", "BITPIX": "16", "NAXIS": "2", "NAXIS1": "4", "NAXIS2": "4"}
        header = "".join(f"{name:<8}= {value:>20}".ljust(80) for name, value in cards.items())
        data = f"{header}END".ljust(2880).encode() + bytes(2880)
    else:
        tiff = encoded(Pillow.fromarray(np.ones((4, 4), np.int32)), "TIFF")
        at = tiff.index(struct.pack("<HHI", 258, 3, 1)) + 8
        data = tiff[:at] + b"\x10" + tiff[at + 1 :]
    with pytest.raises(SampleError, match="pixels of unknown range"):
        load_image(data, 4)


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


def chunk(kind, content, checksum=None):
    checksum = checksum or struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def png_with(*chunks, image=None, at_the_end=False):
    data = encoded(image or Pillow.fromarray(noise(16, 16)))
    place = len(data) - 12 if at_the_end else 33
    return data[:place] + b"".join(chunks) + data[place:]


LARGE = zlib.compress(b"x" * 2_000_000)


@pytest.mark.parametrize("at_the_end", [False, True])
@pytest.mark.parametrize(
    "chunks",
    [
        [chunk(b"zTXt", b"Comment\0\0" + LARGE)],
        [chunk(b"iTXt", b"Comment\0\1\0\0\0" + LARGE)],
        [chunk(b"iCCP", b"profile\0\0" + LARGE)],
        [chunk(b"zTXt", b"%d\0\0" % n + zlib.compress(b"x" * 1_000_000)) for n in range(68)],
        [chunk(b"zTXt", b"Comment\0\5abc")],
        [chunk(b"tEXt", b"Comment\0abc", b"gone")],
        [chunk(b"pHYs", b"a")],
        [chunk(b"eXIf", b"no exif at all")],
        [chunk(b"tEXt", b"Raw profile type exif\0\nexif\n  10\nzz")],
        [chunk(b"fcTL", b"a")],
    ],
)
def test_sound_pixels_are_read_whatever_stands_beside_them(chunks, at_the_end):
    np.testing.assert_array_equal(
        load_image(png_with(*chunks, at_the_end=at_the_end), 16), noise(16, 16)
    )


def test_so_are_those_of_a_file_on_disk(tmp_path):
    (tmp_path / "a.png").write_bytes(png_with(chunk(b"zTXt", b"Comment\0\0" + LARGE)))
    np.testing.assert_array_equal(load_image(tmp_path / "a.png", 16), noise(16, 16))


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_what_the_pixels_need_is_kept_beside_large_metadata(mode):
    image = Pillow.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 8, 4))
    image = image.convert(mode)
    large = chunk(b"zTXt", b"Comment\0\0" + LARGE)
    plain = load_image(png_with(image=image), 8)
    np.testing.assert_array_equal(load_image(png_with(large, image=image), 8), plain)
    assert (plain[7] == 255).all() and (plain[0] == RED).all()


def test_the_side_that_is_up_is_kept_beside_large_metadata():
    exif = Pillow.Exif()
    exif[0x0112] = 6
    large = chunk(b"iTXt", b"Comment\0\1\0\0\0" + LARGE)
    xmp = b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'
    for says in (chunk(b"eXIf", exif.tobytes()[6:]), chunk(b"iTXt", xmp)):
        np.testing.assert_array_equal(
            load_image(png_with(large, says), 16), np.rot90(noise(16, 16), -1)
        )


def segment(marker, content):
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


@pytest.mark.parametrize(
    "metadata",
    [
        segment(0xE2, b"ICC_PROFILE\0"),
        segment(0xE0, b"JFIF\0"),
        segment(0xEE, b"Adobe"),
        segment(0xE1, b"Exif\0\0II*\0" + bytes(range(255, 55, -1))),
        segment(0xE2, b"MPF\0" + bytes(range(60))),
        segment(0xFE, b"x" * 60_000) * 3,
    ],
    ids=["profile", "jfif", "adobe", "exif", "pages", "comments"],
)
def test_damaged_segments_cost_no_jpeg_its_pixels(metadata):
    plain = encoded(Pillow.fromarray(noise(16, 16)), "JPEG")
    data = plain[:2] + metadata + plain[2:]
    np.testing.assert_array_equal(load_image(data, 16), load_image(plain, 16))


def test_a_jpeg_is_upright_although_another_of_its_tags_is_wrong():
    entries = ((0x0112, 3, 1, 6), (0x011A, 2, 1, 8))  # a resolution that is a text
    directory = struct.pack("<H", len(entries)) + b"".join(
        struct.pack("<HHII", *entry) for entry in entries
    )
    exif = segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0" + directory + bytes(4))
    plain = encoded(Pillow.fromarray(noise(16, 16)), "JPEG")
    np.testing.assert_array_equal(
        load_image(plain[:2] + exif + plain[2:], 16), np.rot90(load_image(plain, 16), -1)
    )


def test_a_webp_with_damaged_exif_is_read():
    data = encoded(Pillow.fromarray(noise(16, 16)), "WEBP", lossless=True, exif=b"Exif\0\0nothing")
    np.testing.assert_array_equal(load_image(data, 16), noise(16, 16))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_what_pillow_makes_of_it(orientation):
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    data = encoded(Pillow.fromarray(noise(16, 16)), exif=exif)
    expected = ImageOps.exif_transpose(Pillow.open(io.BytesIO(data)))
    np.testing.assert_array_equal(load_image(data, 16), np.array(expected))


def test_pixels_that_are_damaged_beside_large_metadata_are_corrupt():
    data = png_with(chunk(b"zTXt", b"Comment\0\0" + LARGE))
    with pytest.raises(SampleError, match="corrupt image"):
        load_image(data[:-60], 8)


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


@pytest.mark.parametrize("path", ["a.png/b.png", "a\0.png", "folder/none.png"])
def test_other_paths_that_lead_nowhere_are_missing_too(tmp_path, path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(SampleError, match="missing image"):
        load_image(f"{tmp_path}/{path}", 8)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_an_image_that_is_no_regular_file_is_not_opened(tmp_path, make):
    make(tmp_path / "a.png")
    for look in (lambda path: load_image(path, 8), decode.check_file):
        with pytest.raises(SampleError, match=r"image that is no regular file: .*a\.png"):
            look(tmp_path / "a.png")


def test_an_image_that_cannot_be_reached_is_called_unreadable(tmp_path, monkeypatch):
    with pytest.raises(SampleError, match=r"unreadable image: .*too long"):
        load_image(tmp_path / ("a" * 5000), 8)
    (tmp_path / "a.png").write_bytes(PNG)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(SampleError, match=r"unreadable image: .*Permission denied"):
        load_image(tmp_path / "a.png", 8)


def test_a_pointer_of_git_lfs_is_named():
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    with pytest.raises(SampleError, match=r"pointer of Git LFS .*git lfs pull"):
        load_image(pointer, 8)


@pytest.mark.parametrize("size", [(65_537, 1), (1, 65_537), (1 << 26, 1)])
def test_an_image_with_an_endless_side_is_refused_before_it_is_decoded(size, monkeypatch):
    header = struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0)
    data = PNG[:8] + chunk(b"IHDR", header) + PNG[33:]
    monkeypatch.setattr(Pillow.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(SampleError, match=r"oversized image: .*\d+ x \d+ pixels"):
        load_image(data, 8)


@pytest.mark.parametrize("resize", ["stretch", "crop"])
def test_the_longest_side_is_still_read(resize):
    data = encoded(Pillow.new("RGB", (decode.MAX_SIDE, 2), RED))
    assert (load_image(data, 8, resize=resize) == RED).all()


def test_a_file_with_too_many_bytes_is_refused_before_it_is_opened(tmp_path):
    with open(tmp_path / "a.png", "wb") as file:
        file.truncate(decode.MAX_BYTES + 1)  # a hole, which takes no room
    with pytest.raises(SampleError, match=r"oversized image: .* bytes"):
        load_image(tmp_path / "a.png", 8)


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
