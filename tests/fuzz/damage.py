"""Frames that are nearly right: valid messages, damaged in every way that a peer could."""

import math
from random import Random
from typing import Any, Final

import msgpack

SEPARATOR: Final = b"\0/frame/\0"
"""Between the frames of a message that is one byte string."""
_DEEP: Final = 600

STRANGE: Final[tuple[Any, ...]] = (
    None,
    True,
    -1,
    0,
    2**31,
    2**53 + 1,
    2**63 - 1,
    2**63,
    2**64 - 1,
    -(2**63),
    -0.0,
    1e308,
    math.nan,
    math.inf,
    -math.inf,
    "",
    "\0",
    "n" * 128,
    "n" * 129,
    "\N{PILE OF POO}" * 300,
    b"",
    b"i" * 16,
    b"i" * 17,
    [],
    {},
    [[], {}, None],
    [b"i" * 16] * 3,
    [b"i" * 16] * 5000,
    {str(n): n for n in range(65)},
    msgpack.ExtType(1, b""),
    msgpack.Timestamp(1),
)
_LYING: Final = (
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\x7f\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x01",
    b"\xdc\x10\x00" * _DEEP,
    b"\x91" * _DEEP,
    b"\x81\xa1a" * _DEEP,
)
"""Lengths that are not there, and nesting."""


def joined(frames: list[bytes]) -> bytes:
    return SEPARATOR.join(map(bytes, frames))


def frames_of(data: bytes) -> list[bytes]:
    return data.split(SEPARATOR)


def damaged(frames: list[bytes], random: Random) -> list[bytes]:
    """One to three kinds of damage; what comes out may by chance still be a message."""
    frames = [bytes(frame) for frame in frames]
    for _ in range(random.randint(1, 3)):
        frames = random.choice(_KINDS)(frames, random) or [b""]
    return frames


def damaged_bytes(data: bytes, random: Random) -> bytes:
    """`data` are frames."""
    return joined(damaged(frames_of(data), random))


def _another_value(frames: list[bytes], random: Random) -> list[bytes]:
    if len(frames) < 2:
        return frames
    try:
        header = msgpack.unpackb(frames[1], strict_map_key=False)
        _put(header, random.choice(STRANGE), random)
        return [frames[0], msgpack.packb(header), *frames[2:]]
    except Exception:  # noqa: BLE001 - it was damaged before; msgpack raises a dozen kinds
        return frames


def _put(place: Any, value: Any, random: Random) -> None:
    """Somewhere in there."""
    while True:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        key = random.choice(keys)
        if isinstance(place[key], dict | list) and place[key] and random.random() < 0.7:
            place = place[key]
        elif random.random() < 0.1 and isinstance(place, dict):
            del place[key]
            return
        else:
            place[key] = value
            return


def _a_lying_length(frames: list[bytes], random: Random) -> list[bytes]:
    header = b"\x82\xa3seq\x01\xa1x" + random.choice(_LYING)
    return [frames[0], header, *frames[2:]]


def _other_bytes(frames: list[bytes], random: Random) -> list[bytes]:
    number = random.randrange(len(frames))
    changed = bytearray(frames[number])
    for _ in range(random.randint(1, 6)):
        if changed:
            changed[random.randrange(len(changed))] = random.randrange(256)
    frames[number] = bytes(changed)
    return frames


def _cut(frames: list[bytes], random: Random) -> list[bytes]:
    number = random.randrange(len(frames))
    frames[number] = frames[number][: random.randint(0, len(frames[number]))]
    return frames


def _another_prefix(frames: list[bytes], random: Random) -> list[bytes]:
    version, command = random.choice((1, 1, 1, 0, 2, 255)), random.randint(0, 14)
    frames[0] = b"FLX1" + bytes([version, command]) + random.choice((b"\0\0", b"\0\1"))
    return frames


def _another_count(frames: list[bytes], random: Random) -> list[bytes]:
    match random.randrange(4):
        case 0:
            del frames[random.randrange(len(frames))]
        case 1:
            frames.insert(random.randint(0, len(frames)), b"")
        case 2:
            frames += frames
        case _:
            frames.append(random.randbytes(random.randint(0, 300)))
    return frames


_KINDS: Final = (
    _another_value,
    _another_value,
    _another_value,
    _a_lying_length,
    _other_bytes,
    _cut,
    _another_prefix,
    _another_count,
)
