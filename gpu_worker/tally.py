"""What a worker counts of the images that it has drawn, for its reports."""

from dataclasses import dataclass


@dataclass(slots=True)
class Tally:
    prompt_cache_hits: int = 0
    prompt_cache_misses: int = 0

    def drawn(self, *, text_cached: bool | None) -> None:
        """`text_cached` as in `EngineDrawn`."""
        self.prompt_cache_hits += text_cached is True
        self.prompt_cache_misses += text_cached is False
