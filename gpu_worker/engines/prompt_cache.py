"""What prompts were encoded to, in main memory: the same prompt again costs no pass of T5."""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    prompt_embeds: torch.Tensor
    """Of T5. Shape (1, tokens, width)."""
    pooled_prompt_embeds: torch.Tensor
    """Of CLIP. Shape (1, width)."""

    @property
    def size_bytes(self) -> int:
        return int(self.prompt_embeds.nbytes + self.pooled_prompt_embeds.nbytes)

    def to(self, device: torch.device) -> "EncodedPrompt":
        return EncodedPrompt(self.prompt_embeds.to(device), self.pooled_prompt_embeds.to(device))

    def copied(self) -> "EncodedPrompt":
        """In main memory, and sharing it with nothing."""
        cpu = torch.device("cpu")
        return EncodedPrompt(
            self.prompt_embeds.to(cpu, copy=True), self.pooled_prompt_embeds.to(cpu, copy=True)
        )


class PromptCache:
    """Keeps what was used last, within a number of bytes."""

    def __init__(self, bytes_max: int) -> None:
        """0 keeps nothing."""
        self._bytes_max = bytes_max
        self._kept: OrderedDict[bytes, EncodedPrompt] = OrderedDict()
        self._size_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def find(self, prompt: str) -> EncodedPrompt | None:
        """In main memory. Not to be changed."""
        key = _key(prompt)
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def keep(self, prompt: str, encoded: EncodedPrompt) -> None:
        """A copy, unless it alone is too large."""
        if encoded.size_bytes > self._bytes_max:
            return
        key = _key(prompt)
        self._drop(key)
        while self._size_bytes + encoded.size_bytes > self._bytes_max:
            self._drop(next(iter(self._kept)))
        self._kept[key] = encoded.copied()
        self._size_bytes += encoded.size_bytes

    def _drop(self, key: bytes) -> None:
        dropped = self._kept.pop(key, None)
        if dropped is not None:
            self._size_bytes -= dropped.size_bytes


def _key(prompt: str) -> bytes:
    """Not the prompt itself: nothing that is kept tells what people asked for."""
    return hashlib.sha256(prompt.encode()).digest()
