"""Second stage: the two text encoders learn to tell which scene is meant, before anything is drawn.

Captions cost nothing, so synonyms, free word order and idle words are learnt here in minutes. The encoders
are kept; the heads that name the scene's parts only teach.
"""

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional

from training import chance
from training.captions import caption
from training.checkpoint import Tensors, load_state, part
from training.geometry import T5_TOKENS, make_clip, make_t5
from training.recipe import StageName, StageRecipe
from training.scenes import CELLS, COLOURS, SHAPES, SIZES, Scene, draw_scene
from training.tokenizers import clip_tokenizer, t5_tokenizer

_PARTS: Final = (len(COLOURS), 2, *(2 * (len(SHAPES), len(COLOURS), len(CELLS), len(SIZES))))
"""Ground, number of things less one, then shape, colour, cell and size of the first and of the second."""
_NOTHING: Final = -100
"""Of cross_entropy: not judged."""
_PAIRS: Final = 0.3
_UNSAID: Final = 0.25
_TERSE: Final = 0.3
_MEASURED: Final = 1000


class TextEncoders(nn.Module):  # type: ignore[misc]
    """CLIP and T5 as the pipeline uses them: T5 always with all its tokens, none of them masked."""

    def __init__(self) -> None:
        super().__init__()
        self.clip_tokenizer, self.t5_tokenizer = clip_tokenizer(), t5_tokenizer()
        self.clip = make_clip(self.clip_tokenizer)
        self.t5 = make_t5(self.t5_tokenizer)

    def forward(self, captions: Sequence[str]) -> tuple[Any, Any]:
        """T5's states, (captions, tokens, width), and CLIP's pooled one, (captions, width)."""
        device = self.clip.device
        words = self.t5_tokenizer(
            list(captions), padding="max_length", max_length=T5_TOKENS, truncation=True, return_tensors="pt"
        )
        # What comes after its end changes nothing in CLIP, which looks back only.
        pieces = self.clip_tokenizer(list(captions), padding=True, truncation=True, return_tensors="pt")
        states = self.t5(words.input_ids.to(device)).last_hidden_state
        pooled = self.clip(pieces.input_ids.to(device)).pooler_output
        return states, pooled


class _WordReader(nn.Module):  # type: ignore[misc]
    """A question for each part, put to all words: as the transformer reads them, and padding adds nothing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.questions = nn.Parameter(0.1 * torch.randn(len(_PARTS), width))
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.heads = nn.ModuleList(nn.Linear(width, count) for count in _PARTS)

    def forward(self, states: Any) -> Any:
        questions = self.questions.expand(len(states), -1, -1)
        answers, _ = self.attention(questions, states, states, need_weights=False)
        return torch.cat([head(answers[:, part]) for part, head in enumerate(self.heads)], 1)


class _Taught(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.encoders = TextEncoders()
        width = self.encoders.clip.config.hidden_size
        self.clip_head = nn.Linear(width, sum(_PARTS))
        self.t5_head = _WordReader(width)

    def forward(self, captions: Sequence[str]) -> dict[str, Any]:
        states, pooled = self.encoders(captions)
        return {"clip": self.clip_head(pooled), "t5": self.t5_head(states)}


class TextStage:
    name: StageName = "text"

    def __init__(self, recipe: StageRecipe, *, seed: int, device: str) -> None:
        self.recipe = recipe
        self._seed = seed
        self._device = device
        torch.manual_seed(seed)
        self.trained: nn.Module = _Taught().to(device).train()

    def losses(self, step: int) -> dict[str, Any]:
        numbers = chance.numbers(self._seed, self.name, step)
        scenes = [draw_scene(numbers, pairs=_PAIRS, unsaid=_UNSAID) for _ in range(self.recipe.batch)]
        found = self.trained([caption(scene, numbers, terse=_TERSE) for scene in scenes])
        wanted = torch.tensor([_numbers_of(scene) for scene in scenes], device=self._device)
        losses = {name: _loss(logits.float(), wanted) for name, logits in found.items()}
        return {"loss": losses["clip"] + losses["t5"], **losses}

    def measure(self, weights: Tensors) -> dict[str, float]:
        """The part of held-out captions of which everything was understood."""
        taught = _Taught().to(self._device).eval()
        load_state(taught, weights)
        accuracy = {}
        for kind, pairs in (("single", 0.0), ("pair", 1.0)):
            numbers = chance.numbers("captions", kind)
            scenes = [draw_scene(numbers, pairs=pairs, held_out=True) for _ in range(_MEASURED)]
            found = taught([caption(scene, numbers) for scene in scenes])
            wanted = torch.tensor([_numbers_of(scene) for scene in scenes], device=self._device)
            for name, logits in found.items():
                accuracy[f"{name}_{kind}"] = float(_all_right(logits, wanted).float().mean())
        return accuracy


def encoder_weights(weights: Tensors) -> Tensors:
    """Of the encoders alone, from the stage's result."""
    return part(weights, "encoders")


def _numbers_of(scene: Scene) -> list[int]:
    things = [(it.shape, it.colour, it.cell, it.size) for it in scene.things]
    things += [(_NOTHING,) * 4] * (2 - len(things))
    return [scene.ground, len(scene.things) - 1, *things[0], *things[1]]


def _loss(logits: Any, wanted: Any) -> Any:
    parts = logits.split(_PARTS, 1)
    # A batch without pairs has nothing to say of second things.
    judged = [
        functional.cross_entropy(part, column, ignore_index=_NOTHING)
        for part, column in zip(parts, wanted.unbind(1), strict=True)
        if bool((column != _NOTHING).any())
    ]
    return sum(judged)


def _all_right(logits: Any, wanted: Any) -> Any:
    parts = logits.split(_PARTS, 1)
    right = [
        (part.argmax(1) == it) | (it == _NOTHING) for part, it in zip(parts, wanted.unbind(1), strict=True)
    ]
    return torch.stack(right).all(0)
