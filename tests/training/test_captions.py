"""Captions say what is drawn, in words that the tokenizers know; held-out scenes are never trained on."""

import random
import re

import pytest

from training.captions import caption, vocabulary
from training.scenes import (
    BLACK,
    CELLS,
    CENTRE,
    COLOUR_NAMES,
    MEDIUM,
    SHAPES,
    SIZES,
    WHITE,
    Scene,
    Thing,
    draw_scene,
    unsaid_colour,
)
from training.tokenizers import clip_tokenizer, t5_tokenizer

# Written down once more, by hand: what a reader takes the words for.
MEANINGS = {
    "circle": "circle disc disk dot ball", "square": "square box block", "triangle": "triangle pyramid",
    "star": "star", "heart": "heart", "cross": "cross plus",
    "red": "red crimson scarlet", "orange": "orange tangerine amber", "yellow": "yellow golden lemon",
    "green": "green emerald", "blue": "blue azure cobalt", "purple": "purple violet",
    "white": "white snowy", "black": "black ebony",
    "small": "small little tiny", "large": "large big huge",
    "top": "top upper", "bottom": "bottom lower", "left": "left", "right": "right",
}  # fmt: skip
RED = COLOUR_NAMES.index("red")
MEANING = {word: meaning for meaning, words in MEANINGS.items() for word in words.split()}


def meanings(text: str) -> set[str]:
    return {MEANING[word] for word in re.findall(r"[a-z]+", text.lower()) if word in MEANING}


def expected(scene: Scene) -> set[str]:
    """What a caption with nothing left out means, in the words that have a meaning here."""
    found = {COLOUR_NAMES[scene.ground]}
    for thing in scene.things:
        found |= {SHAPES[thing.shape], COLOUR_NAMES[thing.colour]}
    if scene.relation is None:
        found |= {*CELLS[scene.things[0].cell], SIZES[scene.things[0].size]}
    return found & set(MEANINGS)


@pytest.mark.parametrize(("unsaid", "terse"), [(0.0, 0.0), (1.0, 0.5)])
def test_a_caption_says_what_is_drawn_and_nothing_else(unsaid: float, terse: float) -> None:
    chance = random.Random(1)
    for _ in range(2000):
        scene = draw_scene(chance, pairs=0.0, unsaid=unsaid)
        found = meanings(caption(scene, chance, terse=terse))
        may_be_left_out = {"white"} if scene.ground == WHITE else set()
        if terse and scene.things[0].colour == unsaid_colour(scene.ground):
            may_be_left_out.add(COLOUR_NAMES[scene.things[0].colour])
        assert expected(scene) - may_be_left_out <= found <= expected(scene), (scene, found)


def test_a_relation_is_said_from_either_side() -> None:
    scene = Scene(WHITE, (Thing(0, 0, 1, MEDIUM), Thing(1, 4, 7, MEDIUM)))
    order = set()
    for number in range(200):
        words = re.findall(r"[a-z]+", caption(scene, random.Random(number)).lower())
        first = min(words.index(it) for it in ("circle", "disc", "disk", "dot", "ball") if it in words)
        second = min(words.index(it) for it in ("square", "box", "block") if it in words)
        above = bool({"above", "over", "top"} & set(words))
        assert above is (first < second), words
        order.add(above)
    assert order == {True, False}


def test_what_is_not_said_has_one_meaning() -> None:
    """The middle, medium, on white; black, and white on black."""
    scene = Scene(WHITE, (Thing(2, 3, CENTRE, MEDIUM),))
    captions = {caption(scene, random.Random(number)).lower() for number in range(300)}
    assert {"a green triangle", "green triangle"} & captions
    for ground, colour in ((WHITE, BLACK), (BLACK, WHITE), (RED, BLACK)):
        scene = Scene(ground, (Thing(2, colour, CENTRE, MEDIUM),))
        for number in range(100):
            assert meanings(caption(scene, random.Random(number), terse=1.0)) == {
                "triangle",
                *({COLOUR_NAMES[ground]} - {"white"}),
            }


def test_where_much_goes_without_saying_little_is_said() -> None:
    chance = random.Random(4)
    said = [meanings(caption(draw_scene(chance, unsaid=1.0), chance, terse=1.0)) for _ in range(1000)]
    assert sum(len(found) == 1 for found in said) > 20, "a shape and nothing else"
    assert sum(len(found) <= 3 for found in said) > 500


def test_held_out_scenes_are_others() -> None:
    chance = random.Random(2)
    for pairs, unsaid in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)):
        trained = {
            (scene.ground, tuple((it.shape, it.colour, it.cell) for it in scene.things))
            for scene in (draw_scene(chance, pairs=pairs, unsaid=unsaid) for _ in range(3000))
        }
        kept = [draw_scene(chance, pairs=pairs, unsaid=unsaid, held_out=True) for _ in range(300)]
        assert not [
            scene for scene in kept
            if (scene.ground, tuple((it.shape, it.colour, it.cell) for it in scene.things)) in trained
        ]  # fmt: skip


@pytest.mark.parametrize("pairs", [0.0, 1.0])
def test_every_word_has_a_token(pairs: float) -> None:
    t5, clip = t5_tokenizer(), clip_tokenizer()
    chance, known = random.Random(3), set(vocabulary())
    for _ in range(300):
        text = caption(draw_scene(chance, pairs=pairs), chance)
        words = re.findall(r"[a-z0-9]+", text.lower())
        made_up = [word for word in words if word not in known]
        assert len(made_up) <= 1
        assert t5(text).input_ids.count(t5.unk_token_id) <= 2 * len(made_up)
        assert len(t5(text).input_ids) <= t5.model_max_length
        if not made_up:
            assert {f"{word}</w>" for word in words if not word[0].isdigit()} <= set(clip.tokenize(text))
