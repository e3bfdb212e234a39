"""The words for a scene: free order, common synonyms, and words that mean nothing here. Without torch."""

import random
import re
import string
from typing import Final

from training.scenes import (
    CELLS,
    CENTRE,
    COLOUR_NAMES,
    MEDIUM,
    SHAPES,
    SIZES,
    WHITE,
    Scene,
    Thing,
    unsaid_colour,
)

_SHAPE_WORDS: Final = {
    "circle": ("circle", "circle", "disc", "disk", "dot", "ball"),
    "square": ("square", "square", "box", "block"),
    "triangle": ("triangle", "triangle", "pyramid"),
    "star": ("star", "star", "five-pointed star"),
    "heart": ("heart", "heart", "love heart"),
    "cross": ("cross", "cross", "plus", "plus sign"),
}
_COLOUR_WORDS: Final = {
    "red": ("red", "red", "red", "crimson", "scarlet"),
    "orange": ("orange", "orange", "orange", "tangerine", "amber"),
    "yellow": ("yellow", "yellow", "yellow", "golden", "lemon"),
    "green": ("green", "green", "green", "emerald"),
    "blue": ("blue", "blue", "blue", "azure", "cobalt"),
    "purple": ("purple", "purple", "purple", "violet"),
    "white": ("white", "white", "white", "snowy"),
    "black": ("black", "black", "black", "ebony"),
}
_SIZE_WORDS: Final = {
    "small": ("small", "small", "little", "tiny"),
    "medium": ("medium", "medium-sized"),
    "large": ("large", "large", "big", "huge"),
}
_ROW_WORDS: Final = {"top": ("top", "upper"), "middle": ("middle", "centre"), "bottom": ("bottom", "lower")}
_CENTRE_PHRASES: Final = (
    "in the middle", "in the centre", "in the center", "at the centre", "centred", "centered",
)  # fmt: skip
_SIDE_PHRASES: Final = (
    "at the {it}", "on the {it}", "at the {it} side", "on the {it} side", "{it}", "near the {it} edge",
)  # fmt: skip
_SIDEWAYS_PHRASES: Final = (
    "on the {it}",
    "at the middle {it}",
    "to the {it}",
    "on the {it}-hand side",
    "{it}",
)
_UPRIGHT_PHRASES: Final = ("at the {it} centre", "at the {it} center", "in the {it} middle", "at the {it}")
_CORNER_PHRASES: Final = (
    "at the {row} {it}", "in the {row} {it}", "in the {row} {it} corner", "{row} {it}", "{row}-{it}",
    "at the {row}-{it}", "in the {row}-{it} corner",
)  # fmt: skip
_GROUND_PHRASES: Final = (
    "on a {c} background", "{c} background", "background: {c}", "on {c}", "against a {c} background",
    "on a {c} ground", "with a {c} background", "the background is {c}", "in front of a {c} backdrop",
)  # fmt: skip
_OPENINGS: Final = (
    "", "", "", "", "draw ", "a picture of ", "an image of ", "please draw ", "i want ", "show me ",
    "a drawing of ", "picture: ",
)  # fmt: skip
_IDLE_WORDS: Final = (
    "beautiful", "simple", "flat", "bright", "nice", "clean", "minimalist", "illustration", "high quality",
    "icon", "4k", "please", "pretty", "art", "photo of", "geometric", "cute", "style", "render",
)  # fmt: skip
_RELATIONS: Final = {
    "above": (("above", "over", "on top of"), ("below", "under", "beneath")),
    "left": (
        ("left of", "to the left of", "on the left of"),
        ("right of", "to the right of", "on the right of"),
    ),
}
"""From the first thing to the second, and from the second to the first."""
_JOINTS: Final = (", ", ", ", " ", " ", "; ", ". ")
_WORD: Final = re.compile(r"[a-z0-9]+")


def caption(scene: Scene, chance: random.Random, *, terse: float = 0.0) -> str:
    """Words that mean this scene and no other, so far as the tables know.

    `terse`: the share of captions that leave out what goes without saying, of two shapes only their ground;
    of the others each says some of it.
    """
    is_terse = terse > 0 and chance.random() < terse
    parts = _pair_parts(scene, chance, is_terse) if scene.relation else _single_parts(scene, chance, is_terse)
    if chance.random() < 0.15:
        parts.insert(chance.randint(0, len(parts)), chance.choice(_IDLE_WORDS))
    if chance.random() < 0.1:
        parts.insert(chance.randint(0, len(parts)), _unknown_word(chance))
    text = parts[0]
    for part in parts[1:]:
        text += chance.choice(_JOINTS) + part
    text = chance.choice(_OPENINGS) + text
    return _in_a_case(text, chance)


def vocabulary() -> list[str]:
    """All words that captions are made of, sorted."""
    tables = (_SHAPE_WORDS, _COLOUR_WORDS, _SIZE_WORDS, _ROW_WORDS)
    texts = [text for table in tables for phrases in table.values() for text in phrases]
    texts += [text for ways in _RELATIONS.values() for way in ways for text in way]
    for phrases in (
        _CENTRE_PHRASES, _SIDE_PHRASES, _SIDEWAYS_PHRASES, _UPRIGHT_PHRASES, _CORNER_PHRASES, _GROUND_PHRASES,
        _OPENINGS, _IDLE_WORDS,
    ):  # fmt: skip
        texts += [phrase.format(it="left", row="right", c="red") for phrase in phrases]
    return sorted(
        {word for text in texts for word in _WORD.findall(text)}
        | {"a", "an", "the", "one", "is", "that", "in"}
    )


def _single_parts(scene: Scene, chance: random.Random, is_terse: bool) -> list[str]:
    thing = scene.things[0]
    parts = [_subject(thing, scene.ground, chance, is_terse)]
    if thing.cell != CENTRE or (not is_terse and chance.random() < 0.5):
        parts.append(_place(thing.cell, chance))
    if scene.ground != WHITE or (not is_terse and chance.random() < 0.6):
        parts.append(_ground(scene.ground, chance))
    if chance.random() < 0.35:
        chance.shuffle(parts)
    return parts


def _pair_parts(scene: Scene, chance: random.Random, is_terse: bool) -> list[str]:
    first, second = (_words_of(thing, chance, says_size=False) for thing in scene.things)
    assert scene.relation is not None
    forth, back = _RELATIONS[scene.relation]
    if chance.random() < 0.5:
        parts = [f"{first} {chance.choice(forth)} {second}"]
    else:
        parts = [f"{second} {chance.choice(back)} {first}"]
    if scene.ground != WHITE or (not is_terse and chance.random() < 0.6):
        parts.append(_ground(scene.ground, chance))
    if chance.random() < 0.25:
        chance.shuffle(parts)
    return parts


def _subject(thing: Thing, ground: int, chance: random.Random, is_terse: bool) -> str:
    says_size = thing.size != MEDIUM or (not is_terse and chance.random() < 0.2)
    says_colour = not is_terse or thing.colour != unsaid_colour(ground)
    return _words_of(thing, chance, says_size=says_size, says_colour=says_colour)


def _words_of(thing: Thing, chance: random.Random, *, says_size: bool, says_colour: bool = True) -> str:
    shape = chance.choice(_SHAPE_WORDS[SHAPES[thing.shape]])
    colour = chance.choice(_COLOUR_WORDS[COLOUR_NAMES[thing.colour]])
    size = chance.choice(_SIZE_WORDS[SIZES[thing.size]]) if says_size else ""
    match chance.random():
        case _ if not says_colour:
            words = f"{size} {shape}"
        case it if it < 0.08:
            words = f"{size} {shape} that is {colour}"
        case it if it < 0.14:
            words = f"{shape} in {colour} {size}"
        case it if it < 0.22:
            words = f"{colour} {size} {shape}"
        case _:
            words = f"{size} {colour} {shape}"
    words = " ".join(words.split())
    if chance.random() < 0.25:
        return words
    return (
        f"{chance.choice(('the', 'one'))} {words}" if chance.random() < 0.1 else f"{_article(words)} {words}"
    )


def _article(words: str) -> str:
    return "an" if words[0] in "aeiou" else "a"


def _place(cell: int, chance: random.Random) -> str:
    row, column = CELLS[cell]
    match row, column:
        case "middle", "centre":
            return chance.choice(_CENTRE_PHRASES)
        case "middle", _:
            return chance.choice(_SIDEWAYS_PHRASES).format(it=column)
        case _, "centre":
            phrases = _UPRIGHT_PHRASES if chance.random() < 0.5 else _SIDE_PHRASES
            return chance.choice(phrases).format(
                it=chance.choice(_ROW_WORDS[row]) if phrases is _UPRIGHT_PHRASES else row
            )
        case _:
            return chance.choice(_CORNER_PHRASES).format(row=chance.choice(_ROW_WORDS[row]), it=column)


def _ground(colour: int, chance: random.Random) -> str:
    return chance.choice(_GROUND_PHRASES).format(c=chance.choice(_COLOUR_WORDS[COLOUR_NAMES[colour]]))


def _unknown_word(chance: random.Random) -> str:
    return "".join(chance.choices(string.ascii_lowercase, k=chance.randint(3, 9)))


def _in_a_case(text: str, chance: random.Random) -> str:
    match chance.random():
        case it if it < 0.15:
            return text[0].upper() + text[1:]
        case it if it < 0.18:
            return text.title()
        case it if it < 0.2:
            return text.upper()
        case _:
            return text
