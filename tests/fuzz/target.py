"""What is fuzzed: a piece of the product that takes bytes or text from outside, and the verdict on it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

CORPUS: Final = Path(__file__).parent / "corpus"
LIMIT_S: Final = 2.0
"""Of CPU for one input, which has some kilobytes: what takes longer grows faster than its input."""
TEXT_MAX: Final = 2000
"""Characters of what is told about an input, however long that is."""
PLANTED: Final = "s3cret-Of-Nobody"
"""A key in the first inputs. What is told about an input never quotes it."""


class Finding(AssertionError):
    """The product did with an input what it must not do."""


@dataclass(frozen=True, kw_only=True)
class Target:
    name: str
    judge: Callable[[bytes], object]
    """Returns whatever it likes; an exception is a finding."""
    modules: tuple[str, ...]
    """Whose coverage is told."""
    seeds: Callable[[], list[bytes]] = list
    """What to begin with, beside the corpus."""
    share: float = 1.0
    """Of all inputs, as a part of an even share: slow ones get less."""
    mutate: Callable[[bytes, Random], bytes] | None = None
    """A change that keeps the shape which random bytes seldom have."""
    property_test: Callable[[], None] | None = None
    """The same as a test of hypothesis: what `judge` makes of bytes are its choices then."""
    max_bytes: int = 4096

    def check(self, data: bytes) -> None:
        """Judge one input, and the time that it takes. Raises whatever the product raised, or `Finding`."""
        began_s = time.process_time()
        self.judge(data)
        took_s = time.process_time() - began_s
        if took_s > LIMIT_S:
            raise Finding(f"{took_s:.1f} s for {len(data)} bytes")

    def beginnings(self) -> list[bytes]:
        return [*self.seeds(), *corpus_of(self.name)]


def corpus_of(name: str) -> list[bytes]:
    """What is kept of earlier runs: an input a line, in hexadecimal digits."""
    file = CORPUS / f"{name}.txt"
    return [bytes.fromhex(line) for line in file.read_text().split()] if file.exists() else []


def keep_corpus(name: str, inputs: list[bytes]) -> None:
    CORPUS.mkdir(exist_ok=True)
    lines = sorted({each.hex() for each in inputs}, key=lambda line: (len(line), line))
    (CORPUS / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))


@contextmanager
def refusing(*documented: type[Exception]) -> Iterator[None]:
    """What is inside may raise these errors, with a text that helps, and no others."""
    try:
        yield
    except documented as error:
        check_text(str(error))


def check_text(told: str) -> None:
    """One line that says something, is not endless, and tells no secret."""
    if not told.strip() or "\n" in told:
        raise Finding(f"not one line: {told!r}")
    if len(told) > TEXT_MAX:
        raise Finding(f"a text of {len(told)} characters: {told[:80]!r}…")
    if PLANTED in told:
        raise Finding(f"a secret is told: {told!r}")


def same(first: Any, second: Any) -> None:
    if first != second:
        raise Finding(f"{first!r} came back as {second!r}")
