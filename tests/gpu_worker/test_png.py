"""PNG as other programs read it: pixels, text chunks, checksums."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gpu_worker.engines.engine import RgbImage
from gpu_worker.png import encode_png


def noise(height: int, width: int, seed: int = 0) -> RgbImage:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def read(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png), formats=["PNG"])
    image.load()
    return image


def chunks_of(png: bytes) -> list[tuple[bytes, bytes]]:
    """Kind and content of each; the checksum is looked at."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    found, at = [], 8
    while at < len(png):
        (length,) = struct.unpack_from(">I", png, at)
        kind, content = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        (checksum,) = struct.unpack_from(">I", png, at + 8 + length)
        assert checksum == zlib.crc32(kind + content), kind
        found.append((kind, content))
        at += 12 + length
    return found


@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 100))
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_the_pixels_are_those_that_were_given(height, width, seed):
    image = noise(height, width, seed)
    read_back = read(encode_png(image))
    assert (read_back.mode, read_back.size) == ("RGB", (width, height))
    assert (np.asarray(read_back) == image).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 1024), (1024, 1), (1024, 1024)])
def test_the_smallest_and_the_largest(size):
    image = noise(*size)
    assert (np.asarray(read(encode_png(image))) == image).all()


def test_a_picture_need_not_be_contiguous():
    image = noise(20, 30)[3:17, 5:22]
    assert not image.flags.c_contiguous
    assert (np.asarray(read(encode_png(image))) == image).all()


def test_smooth_pictures_become_small():
    column = np.linspace(0, 255, 256, dtype=np.uint8)
    image = np.broadcast_to(column[:, None, None], (256, 256, 3))
    assert len(encode_png(image)) < 5_000


def test_the_chunks_are_in_order_and_their_checksums_right():
    chunks = chunks_of(encode_png(noise(9, 7), {"Software": "this", "Description": "Größe 10 €"}))
    assert [kind for kind, _ in chunks] == [b"IHDR", b"tEXt", b"iTXt", b"IDAT", b"IEND"]


@pytest.mark.parametrize("text", ["", "a cat", "Mädchen", "猫とα", "two\nlines", "x" * 8192])
def test_texts_can_be_read_by_their_keyword(text):
    assert read(encode_png(noise(4, 4), {"Description": text, "Software": "this"})).text == {
        "Description": text,
        "Software": "this",
    }


def test_a_zero_does_not_cut_a_text_off():
    text = read(encode_png(noise(4, 4), {"Description": "one\0two"})).text["Description"]
    assert text == "one\N{REPLACEMENT CHARACTER}two"


def test_the_same_picture_is_the_same_bytes():
    texts = {"Software": "this", "Description": "猫"}
    assert encode_png(noise(50, 60), texts) == encode_png(noise(50, 60), texts)


@pytest.mark.parametrize("shape", [(0, 4, 3), (4, 0, 3), (4, 4), (4, 4, 4), (4, 4, 1)])
def test_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="instead of"):
        encode_png(np.zeros(shape, dtype=np.uint8))
