"""Frames: whatever they hold, the codec makes a valid message of them, or says what is wrong."""

from functools import cache
from typing import Final

from fuzz.damage import damaged_bytes, frames_of, joined
from fuzz.target import Target, check_text, same
from hypothesis import Phase, given, settings
from hypothesis.strategies import SearchStrategy
from samples import strategies as wire

from proto.codec import ProtocolViolation, decode, encode
from proto.messages import Message


def judge_frames(data: bytes) -> None:
    """A message, which is the same after another journey, or the one documented error."""
    try:
        message = decode(frames_of(data))
    except ProtocolViolation as violation:
        check_text(str(violation))
    else:
        same(message, decode(encode(message)))


def examples() -> list[bytes]:
    """Two of each command, the same in every run."""
    return [joined(list(encode(message))) for message in example_messages()]


@cache
def example_messages() -> tuple[Message, ...]:
    found: list[Message] = []
    for strategy in wire.BY_TYPE.values():
        by_size = sorted(_drawn_from(strategy), key=lambda message: len(encode(message)[1]))
        found += [by_size[0], by_size[len(by_size) // 2]]
    return tuple(found)


def _drawn_from(strategy: SearchStrategy[Message]) -> list[Message]:
    drawn: list[Message] = []

    @settings(wire.REPEATABLE, max_examples=10, phases=[Phase.generate])
    @given(message=strategy)
    def draw(message: Message) -> None:
        drawn.append(message)

    draw()
    return drawn


TARGETS: Final = (
    Target(
        name="frames",
        judge=judge_frames,
        modules=("proto.codec", "proto.messages"),
        seeds=examples,
        share=8.0,
        mutate=damaged_bytes,
    ),
)
