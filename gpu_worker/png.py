"""PNG of RGB pixels, fast rather than small: the "Up" filter and the quickest deflate there is.

Chunks, filters and keywords are those of the PNG specification (https://www.w3.org/TR/png-3/).
"""

import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
from isal import isal_zlib

from gpu_worker.engines.engine import RgbImage

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_LENGTH: Final = struct.Struct(">I")
_CRC: Final = struct.Struct(">I")
_HEADER: Final = struct.Struct(">IIBBBBB")
"""Width, height, bits a sample, colour type, compression, filter method, interlacing."""
_EIGHT_BITS: Final = 8
_RGB: Final = 2
_CHANNELS: Final = 3
_UP: Final = 2
"""Filter type: each byte less the one above it."""
_LEVEL: Final = 1
_UNCOMPRESSED: Final = b"\0\0"


def encode_png(image: RgbImage, texts: Mapping[str, str] | None = None) -> bytes:
    """The PNG of `image`, of shape (height, width, 3). The same pixels and texts give the same bytes.

    `texts`: by keyword, Latin letters of 79 at most, in the order in which they are to stand.

    Raises:
        ValueError: the image has another shape, or no pixel.
    """
    if image.ndim != _CHANNELS or image.shape[2] != _CHANNELS or 0 in image.shape:
        raise ValueError(f"an image of shape {image.shape} instead of (height, width, 3)")
    height, width, _ = image.shape
    header = _HEADER.pack(width, height, _EIGHT_BITS, _RGB, 0, 0, 0)
    pixels = isal_zlib.compress(_filtered(image), level=_LEVEL)
    chunks = [_chunk(b"IHDR", header)]
    chunks += [_text_chunk(keyword, text) for keyword, text in (texts or {}).items()]
    chunks += [_chunk(b"IDAT", pixels), _chunk(b"IEND", b"")]
    return b"".join((_SIGNATURE, *chunks))


def _filtered(image: RgbImage) -> "NDArray[np.uint8]":
    """Shape (height, 1 + 3 * width): each row with its filter type before it."""
    height, width, _ = image.shape
    rows = image.reshape(height, _CHANNELS * width)
    filtered = np.empty((height, 1 + _CHANNELS * width), dtype=np.uint8)
    filtered[:, 0] = _UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    return filtered


def _text_chunk(keyword: str, text: str) -> bytes:
    """`tEXt` where Latin-1 will do, as older readers know nothing else; UTF-8 otherwise."""
    text = text.replace("\0", "\N{REPLACEMENT CHARACTER}")  # In both it would end the text.
    name = keyword.encode("latin-1") + b"\0"
    try:
        return _chunk(b"tEXt", name + text.encode("latin-1"))
    except UnicodeEncodeError:
        no_language, no_translation = b"\0", b"\0"
        return _chunk(b"iTXt", name + _UNCOMPRESSED + no_language + no_translation + text.encode())


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = isal_zlib.crc32(content, isal_zlib.crc32(kind))
    return b"".join((_LENGTH.pack(len(content)), kind, content, _CRC.pack(checksum)))
