"""What a tokenizer can make of a text: no lone surrogates, and words that it knows."""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from vlm_lens.counted import counted


class UnknownWordsWarning(UserWarning):
    """The tokenizer does not know some words of a text, so that the model does not see them."""


def check_text(text: str, *, what: str = "the text") -> None:
    """Refuse a text that no tokenizer takes.

    Args:
        text: The text.
        what: What it is, for the message.

    Raises:
        ValueError: It holds half of a character.

    Example:
        >>> check_text("red \\ud800")
        Traceback (most recent call last):
        ValueError: the text holds a lone surrogate ('\\ud800' at character 4), half of a \
character: decode its source as UTF-8
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} holds a lone surrogate ({text[error.start]!r} at character {error.start}), "
            "half of a character: decode its source as UTF-8"
        ) from None


def warn_of_unknown_words(tokenizer: Any, rows: Iterable[tuple[Sequence[int], str]]) -> None:
    """Warn once where tokens stand for words that the tokenizer does not know.

    Args:
        tokenizer: The tokenizer.
        rows: Tokens that it made, each with the text that it made them of.

    Warns:
        UnknownWordsWarning: There are such words; the message lists some.

    Example:
        >>> from vlm_lens import HookedVLM
        >>> tokenizer = HookedVLM.from_pretrained("shapes-llava").tokenizer
        >>> with warnings.catch_warnings(record=True, action="always") as caught:
        ...     warn_of_unknown_words(tokenizer, [(tokenizer("a zebra")["input_ids"], "a zebra")])
        >>> print(caught[0].message)
        The tokenizer does not know 1 word, and gives the model '<unk>' instead: 'zebra'.
    """
    unknown = tokenizer.unk_token_id
    texts = [text for ids, text in rows if unknown is not None and unknown in ids]
    words = {word: None for text in texts for word in _unknown(tokenizer, text, unknown or 0)}
    if not words:
        return
    shown = ", ".join(map(repr, list(words)[:5])) + (" ..." if len(words) > 5 else "")
    warnings.warn(
        f"The tokenizer does not know {counted(len(words), 'word')}, and gives the model "
        f"{tokenizer.unk_token!r} instead: {shown}.",
        UnknownWordsWarning,
        stacklevel=3,
    )


def _unknown(tokenizer: Any, text: str, unknown: int) -> list[str]:
    """The words of a text that become the unknown token; not that token, if someone wrote it."""
    if tokenizer.is_fast:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        words = [text[start:end] for token, (start, end) in pairs if token == unknown]
    else:
        words = [
            w
            for w in text.split()
            if unknown in tokenizer(w, add_special_tokens=False)["input_ids"]
        ]
    return [word for word in words if word and word != tokenizer.unk_token]
