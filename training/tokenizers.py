"""The two tokenizers, with whole words for what captions are made of. Made by rule: the same each time."""

from collections import Counter
from itertools import pairwise
from typing import Final

from transformers import CLIPTokenizer, T5TokenizerFast

from training.captions import vocabulary
from training.geometry import CLIP_TOKENS, T5_TOKENS

_SPACE: Final = "\N{LOWER ONE EIGHTH BLOCK}"
_AFTER_HYPHEN: Final = ("left", "right", "sized", "pointed", "hand", "centre", "center")


def t5_tokenizer() -> T5TokenizerFast:
    """A token for each known word in three cases, one for an unknown word of any length."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    words = dict.fromkeys(form for word in vocabulary() for form in (word, word.capitalize(), word.upper()))
    pieces = [f"{_SPACE}{word}" for word in words]
    for word in _AFTER_HYPHEN:
        pieces += [f"-{form}" for form in (word, word.capitalize(), word.upper())]
    pieces += list(",.;:!?-")
    return T5TokenizerFast(
        vocab=special + [(piece, -3.0) for piece in pieces], extra_ids=0, model_max_length=T5_TOKENS
    )


def clip_tokenizer() -> CLIPTokenizer:
    """A token for each known word; all else in pieces of words and bytes, so that nothing is unknown."""
    symbols = byte_symbols()
    merges = _merges(vocabulary())
    pieces = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *("".join(pair) for pair in merges)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    numbers = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(vocab=numbers, merges=merges, model_max_length=CLIP_TOKENS)


def byte_symbols() -> list[str]:
    """The printable stand-ins that byte-level vocabularies have for the 256 bytes, in their order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    stand_ins = (chr(0x100 + number) for number in range(256))
    return [chr(byte) if byte in printable else next(stand_ins) for byte in range(256)]


def _merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair encoding until every word is one piece. Of equally common pairs the first in the alphabet."""
    split = [[*word[:-1], f"{word[-1]}</w>"] for word in words]
    merges = []
    while any(len(pieces) > 1 for pieces in split):
        pairs = Counter(pair for pieces in split for pair in pairwise(pieces))
        chosen = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(chosen)
        split = [_merged(pieces, chosen) for pieces in split]
    return merges


def _merged(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in pieces:
        # A piece that was merged a moment ago is no longer the pair's first half.
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged
