"""Prompts to embeddings: through the cache, and with T5 where the memory plan has it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from diffusers import FluxPipeline

from gpu_worker.engines.prompt_cache import EncodedPrompt, PromptCache

_PROMPT_TOKENS_MAX: Final = 512
"""The pipeline takes no more for its T5 encoder."""


class OffloadedWeights:
    """A module's weights in main memory, brought to a device for as long as it computes there.

    They do not change, so they are never copied back: what is on the device is dropped.
    """

    def __init__(self, module: Any, device: torch.device) -> None:
        self._device = device
        self._homes: list[tuple[torch.Tensor, torch.Tensor]] = []
        # Each once, also where two names share a tensor; one by one, or all would be in main memory twice.
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = home = self._at_home(tensor.data)
            self._homes.append((tensor, home))

    @contextmanager
    def on_device(self) -> Iterator[None]:
        if self._device.type == "cuda":
            # What the last drawing left in the allocator's hands is where T5 is to go.
            torch.cuda.empty_cache()
        # Tensors made in inference mode could not take the places of these.
        with torch.inference_mode(False), torch.no_grad():
            try:
                for tensor, home in self._homes:
                    tensor.data = home.to(self._device, non_blocking=True, copy=True)
                with torch.inference_mode():
                    yield
            finally:
                self._go_home()

    def _at_home(self, data: torch.Tensor) -> torch.Tensor:
        """Pinned for a GPU, which then reads it several times as fast."""
        return data.cpu().pin_memory() if self._device.type == "cuda" else data.cpu()

    def _go_home(self) -> None:
        for tensor, home in self._homes:
            tensor.data = home
        if self._device.type == "cuda":
            # Pieces of its size would be of little use to the steps.
            torch.cuda.empty_cache()


class TextEncoding:
    """Encodes prompts with the pipeline's CLIP and T5, wherever these lie.

    `offload_to`: T5 lies in main memory, and computes there.
    """

    def __init__(
        self,
        pipeline: FluxPipeline,
        *,
        device: torch.device,
        offload_to: torch.device | None,
        cache_bytes_max: int,
    ) -> None:
        self._pipeline = pipeline
        self._device = device
        self._t5 = None if offload_to is None else OffloadedWeights(pipeline.text_encoder_2, offload_to)
        self.cache = PromptCache(cache_bytes_max)

    def encode(self, prompt: str) -> tuple[EncodedPrompt, bool]:
        """On the device, and whether it was in the cache."""
        with torch.inference_mode():
            found = self.cache.find(prompt)
            if found is not None:
                return found.to(self._device), True
            encoded = self._encode(prompt)
            self.cache.keep(prompt, encoded)
            return encoded, False

    def _encode(self, prompt: str) -> EncodedPrompt:
        if self._t5 is None:
            return self._compute(prompt)
        with self._t5.on_device():
            return self._compute(prompt)

    def _compute(self, prompt: str) -> EncodedPrompt:
        tokens_max = min(_PROMPT_TOKENS_MAX, self._pipeline.tokenizer_2.model_max_length)
        prompt_embeds, pooled_prompt_embeds, _ = self._pipeline.encode_prompt(
            prompt=prompt, prompt_2=None, device=self._device, max_sequence_length=tokens_max
        )
        # The pipeline draws in the dtype of what it is given, and T5 may have computed in another.
        dtype = self._pipeline.transformer.dtype
        return EncodedPrompt(prompt_embeds.to(dtype), pooled_prompt_embeds.to(dtype))
