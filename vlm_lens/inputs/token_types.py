"""Names for kinds of tokens: "image", "text", "answer text", "text+special"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from vlm_lens.inputs.token_kinds import Modality, Role

ANY = "any"
"""The type that every position has."""

MODALITIES: tuple[Modality, ...] = tuple(m for m in get_args(Modality) if m != "padding")
ROLES: tuple[Role, ...] = get_args(Role)
KINDS: tuple[tuple[Modality, Role], ...] = tuple(
    (m, r) for m in MODALITIES for r in ROLES if r == "prompt" or m in ("text", "special")
)
"""What a position can be: a modality and a role, as `vlm_lens.inputs.TokenMap` has them. Answers
are words."""

_WORDS = (*MODALITIES, *ROLES, ANY)


@dataclass(frozen=True)
class TokenType:
    """A kind of tokens, or several together.

    Words side by side all hold ("answer text": text that is the answer's), and "+" joins
    alternatives ("text+special": MINER's special_text). The words are the modalities "image",
    "audio", "text" and "special", the roles "prompt" and "answer", and "any".

    Attributes:
        name: As it was written.
        kinds: The pairs of modality and role that it stands for.

    Example:
        >>> sorted(TokenType.parse("answer text+special").kinds)
        [('special', 'answer'), ('special', 'prompt'), ('text', 'answer')]
    """

    name: str
    kinds: frozenset[tuple[Modality, Role]]

    @classmethod
    def parse(cls, name: str) -> TokenType:
        """The type of this name.

        Raises:
            ValueError: A word is unknown, or words exclude each other.
        """
        kinds: set[tuple[Modality, Role]] = set()
        for alternative in name.split("+"):
            kinds |= _all_of(alternative.split(), name)
        return cls(name, frozenset(kinds))

    @classmethod
    def union(cls, types: Sequence[TokenType]) -> TokenType:
        """All of these together."""
        kinds = frozenset(kind for token_type in types for kind in token_type.kinds)
        return cls("+".join(token_type.name for token_type in types), kinds)


def parse_types(names: Sequence[str]) -> list[TokenType]:
    """The types of these names.

    Raises:
        ValueError: There is none, one is given twice, or one cannot be read.
        TypeError: It is one text instead of a list of texts.
    """
    if isinstance(names, str):
        raise TypeError(f"expected a list of token types, got {names!r}: put it in a list")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"expected token types, each of them once, got {list(names)}")
    return [TokenType.parse(name) for name in names]


def _all_of(words: list[str], name: str) -> set[tuple[Modality, Role]]:
    """The kinds that all of some words fit."""
    unknown = [word for word in words if word not in _WORDS]
    if unknown or not words:
        wrong = repr(unknown[0]) if unknown else "a type without a word"
        raise ValueError(
            f"cannot read the token type {name!r}: {wrong}. Expected words of {', '.join(_WORDS)}, "
            "side by side where all hold, joined by '+' where one of them does."
        )
    found = {kind for kind in KINDS if {*words} <= {*kind, ANY}}
    if not found:
        raise ValueError(f"cannot read the token type {name!r}: no position is all of {words}")
    return found
