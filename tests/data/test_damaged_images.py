"""Damaged images and EXIF entries of any kind: read, or named in one line and left out by --skip-broken; never a traceback.

`GAFREEZE_FUZZ_SECONDS=60 pytest tests/data/test_damaged_images.py` looks longer for bytes that do something else.
"""

import io
import os
import struct
import time

import numpy as np
import pytest
from PIL import Image, ImageOps

from gafreeze_jax.data import images
from gafreeze_jax.data.images import Frame, load_images, load_unlabelled

FRAME = Frame(8)
FUZZ_SECONDS = float(os.environ.get("GAFREEZE_FUZZ_SECONDS", 1))  # for each format
KINDS = {".jpg": "JPEG", ".png": "PNG", ".gif": "GIF", ".bmp": "BMP", ".webp": "WEBP"}

# EXIF

ASCII, SHORT, LONG, RATIONAL, SLONG, FLOAT = 2, 3, 4, 5, 9, 11
ORIENTATION, WIDTH, MODEL, X_RESOLUTION, SUB_IFD, GPS = 0x112, 0x100, 0x110, 0x11A, 0x8769, 0x8825


def exif(*entries):
    """EXIF of entries (tag, type, count, value of four bytes or offset)."""
    body = b"".join(struct.pack(">HHI", *entry[:3]) + entry[3] for entry in sorted(entries))
    return b"Exif\0\0MM\0\x2a\0\0\0\x08" + struct.pack(">H", len(entries)) + body + bytes(4)


def upright(value):
    """The entry that says how to turn the image."""
    return ORIENTATION, SHORT, 1, struct.pack(">HH", value, 0)


WRONG_ENTRIES = {
    "negative width": (WIDTH, SLONG, 1, struct.pack(">i", -5)),
    "model as a float": (MODEL, FLOAT, 1, struct.pack(">f", 1.5)),
    "resolution as text": (X_RESOLUTION, ASCII, 4, b"72x\0"),
    "a type that there is not": (WIDTH, 99, 1, bytes(4)),
    "a value beyond the end": (MODEL, ASCII, 1000, struct.pack(">I", 2**31)),
    "a resolution of 0/0": (X_RESOLUTION, RATIONAL, 1, struct.pack(">I", 4)),
    "a negative place of more entries": (SUB_IFD, SLONG, 1, struct.pack(">i", -1)),
    "itself as more entries": (SUB_IFD, LONG, 1, struct.pack(">I", 8)),
    "more entries as text": (GPS, ASCII, 4, b"GPS\0"),
}


def corner(suffix=".jpg", **options):
    """An image [16, 24] that is black but for its upper left quarter."""
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:8, :12] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, KINDS[suffix], **options)
    return buffer.getvalue()


def bright_corners(path):
    """Which quarters of an image are bright as it comes out."""
    image = load_unlabelled(path, Frame(8, resample=Image.Resampling.BOX, squashes=True)).images[0]
    return (image[::4, ::4].mean(-1) > 128).tolist()


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", WRONG_ENTRIES)
def test_the_orientation_counts_beside_wrong_entries(name, tmp_path):
    path = put(tmp_path / "1.jpg", corner(exif=exif(upright(6), WRONG_ENTRIES[name])))
    assert bright_corners(path) == [[False, True], [False, False]]


def test_pillow_itself_fails(tmp_path):
    """Else these entries would show nothing."""
    path = put(tmp_path / "1.jpg", corner(exif=exif(upright(6), WRONG_ENTRIES["negative width"])))
    with Image.open(path) as image, pytest.raises(struct.error):
        ImageOps.exif_transpose(image)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("value", range(1, 9))
def test_all_orientations_are_as_pillow_has_them(value, suffix, tmp_path):
    path = put(tmp_path / f"1{suffix}", corner(suffix, exif=exif(upright(value))))
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(np.asarray(images._open(path)), expected)


NO_ORIENTATIONS = {
    "0": upright(0),
    "9": upright(9),
    "text": (ORIENTATION, ASCII, 2, b"6\0\0\0"),
    "a negative number": (ORIENTATION, SLONG, 1, struct.pack(">i", -6)),
    "no number": (ORIENTATION, SHORT, 0, bytes(4)),
}


@pytest.mark.parametrize("name", NO_ORIENTATIONS)
def test_an_orientation_that_is_none(name, tmp_path):
    path = put(tmp_path / "1.jpg", corner(exif=exif(NO_ORIENTATIONS[name])))
    assert bright_corners(path) == [[True, False], [False, False]]


@pytest.mark.parametrize(
    "entries",
    [
        b"Exif\0\0",
        b"Exif\0\0nothing",
        b"Exif\0\0MM\0\x2a\xff\xff\xff\xff",
        exif(upright(6))[:20],
        b"Exif\0\0II*\0" + b"\xff" * 40,
    ],
)
def test_exif_that_is_none(entries, tmp_path):
    assert bright_corners(put(tmp_path / "1.jpg", corner(exif=entries))) == [[True, False], [False, False]]


def test_wrong_entries_in_training(tmp_path):
    for kind in ("ant", "bee"):
        for i, entry in enumerate(WRONG_ENTRIES.values()):
            put(tmp_path / kind / f"{i}.jpg", corner(exif=exif(upright(6), entry)))
    assert sum(len(split.labels) for split in load_images(str(tmp_path), FRAME)[:3]) == 2 * len(WRONG_ENTRIES)


# Formats


@pytest.mark.parametrize("suffix", KINDS)
def test_formats(suffix, tmp_path):
    assert bright_corners(put(tmp_path / f"1{suffix}", corner(suffix))) == [[True, False], [False, False]]
    assert bright_corners(put(tmp_path / "2.jpg", corner(suffix))) == [[True, False], [False, False]]  # by its content


def test_the_first_of_several_pictures_counts(tmp_path):
    """As in animations, and in the JPEG files of some telephones."""
    pictures = [Image.new("RGB", (24, 16), colour) for colour in ("white", "black")]
    for suffix, kind in ((".gif", "GIF"), (".webp", "WEBP"), (".jpg", "MPO"), (".png", "PNG")):
        buffer = io.BytesIO()
        pictures[0].save(buffer, kind, save_all=True, append_images=pictures[1:])
        assert bright_corners(put(tmp_path / f"1{suffix}", buffer.getvalue())) == 2 * [[True, True]]


def test_what_pillow_warns_of_is_not_printed(tmp_path, recwarn):
    Image.new("P", (9, 9)).save(tmp_path / "1.png", transparency=b"\0\1\2")
    load_unlabelled(tmp_path / "1.png", FRAME)
    assert not recwarn.list


# Any bytes


def whole(suffix):
    """Files of a format, one for each kind of pixels that it takes."""
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8))
    wanted = [("RGB", {"exif": exif(upright(6), WRONG_ENTRIES["model as a float"])})] + [
        (mode, options)
        for mode in ("RGB", "L", "P", "1", "RGBA", "CMYK")
        for options in ({}, {"progressive": True, "lossless": True})
    ]
    for mode, options in wanted:
        buffer = io.BytesIO()
        try:
            pixels.convert(mode).save(buffer, KINDS[suffix], **options)
        except (OSError, ValueError):  # this format has no such pixels
            continue
        yield buffer.getvalue()


def mutate(rng, content):
    """Cut off, changed, set to extreme values near the start, with more bytes, or without some."""
    data = bytearray(content)
    first, last = sorted(rng.integers(0, len(data), 2))
    match rng.integers(5):
        case 0:
            del data[first:]
        case 1:
            for place in rng.integers(0, len(data), 8):
                data[place] = rng.integers(256)
        case 2:
            for place in rng.integers(0, min(len(data), 200), 8):
                data[place] = rng.choice([0, 1, 127, 128, 255])
        case 3:
            data[first:first] = rng.bytes(rng.integers(1, 30))
        case 4:
            del data[first:last]
    return bytes(data)


@pytest.mark.parametrize("suffix", KINDS)
def test_damaged_files_are_read_or_named(suffix, tmp_path, recwarn, capfd):
    """Random damage; the seed is in the name of the file."""
    contents, end, seed = list(whole(suffix)), time.monotonic() + FUZZ_SECONDS, 0
    num_whole = num_broken = 0
    while time.monotonic() < end:
        folder = tmp_path / str(seed)
        names = set()
        for seed in range(seed, seed + 50):  # noqa: B020, as seeds go on
            rng = np.random.default_rng(seed)
            names.add(put(folder / f"{seed}{suffix}", mutate(rng, contents[rng.integers(len(contents))])).name)
        seed += 1
        put(folder / f"whole{suffix}", contents[0])
        found = load_unlabelled(folder, FRAME, skip_broken=True)
        read = set(found.columns["file"])
        assert found.images.shape == (len(read), 8, 8, 3)
        assert read <= names | {f"whole{suffix}"}
        assert all(note.isprintable() and len(note) <= 600 for note in found.notes)
        if broken := names - read:
            with pytest.raises(ValueError, match="cannot be read as images: ") as error:
                load_unlabelled(folder, FRAME)
            assert sorted(broken)[0] in str(error.value)
            assert str(error.value).isprintable()
        num_whole, num_broken = num_whole + len(read), num_broken + len(broken)
    assert num_whole > 0 < num_broken
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")
