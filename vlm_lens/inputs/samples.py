"""Sort the arguments of `prepare` into one entry per sample."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlm_lens.inputs.images import ImageSource
from vlm_lens.inputs.prompts import Prompt
from vlm_lens.inputs.sounds import Sounds, SoundSource

Images = ImageSource | Sequence[ImageSource] | None


@dataclass(frozen=True)
class RawSample:
    """What the user gave for one sample."""

    prompt: Prompt
    sources: list[ImageSource] | list[SoundSource]
    answer: str | None


def split_samples(
    media: Images | Sounds | Sequence[Images] | Sequence[Sounds],
    text: Prompt | Sequence[Prompt],
    answer: str | Sequence[str] | None,
    *,
    placeholder: str,
) -> tuple[list[RawSample], bool]:
    """Returns one entry per text, and whether the texts came as a list.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: There is no text, the numbers of images, texts and answers differ, or an answer
            is empty or holds the placeholder.
    """
    batched = not _is_single(text)
    prompts: list[Any] = list(text) if batched else [text]
    sources = _media_lists(media, n_texts=len(prompts), batched=batched)
    answers = _answers(answer, len(prompts), batched=batched, placeholder=placeholder)
    rows = zip(prompts, sources, answers, strict=True)
    return [RawSample(*row) for row in rows], batched


def _is_single(text: object) -> bool:
    if isinstance(text, str):
        return True
    if not isinstance(text, list | tuple):
        raise TypeError(
            f"expected text as a str, chat messages or a list of these, got {type(text).__name__}"
        )
    if not text:
        raise ValueError("expected at least one text, got an empty list")
    return isinstance(text[0], Mapping)


def _media_lists(images: object, *, n_texts: int, batched: bool) -> list[list[Any]]:
    if images is None:
        return [[] for _ in range(n_texts)]
    if not batched:
        return [_as_list(images)]
    if not isinstance(images, list | tuple):
        raise TypeError(
            f"expected a list of images with one entry per text, as text is a list of {n_texts}, "
            f"got {type(images).__name__}: put it in a list"
        )
    if len(images) != n_texts:
        raise ValueError(
            f"expected one entry of images per text, got {len(images)} for {n_texts} texts: give "
            "a text without images None, and one with several a list"
        )
    return [_as_list(entry) for entry in images]


def _as_list(entry: object) -> list:
    if entry is None:
        return []
    return list(entry) if isinstance(entry, list | tuple) else [entry]


def _answers(
    answer: object, n_texts: int, *, batched: bool, placeholder: str
) -> Sequence[str | None]:
    if answer is None:
        return [None] * n_texts
    given = answer if isinstance(answer, list | tuple) else [answer]
    answers = [item for item in given if isinstance(item, str)]
    if batched != isinstance(answer, list | tuple) or len(answers) < len(given):
        expected = f"a list of {n_texts} str, one per text" if batched else "a str, as text is one"
        raise TypeError(f"expected answer as {expected}, got {answer!r}")
    if len(answers) != n_texts:
        raise ValueError(f"expected one answer per text, got {len(answers)} for {n_texts} texts")
    for i, item in enumerate(answers):
        if not item.strip():
            raise ValueError(
                f"sample {i}: the answer is empty ({item!r}): write it or leave it out"
            )
        if placeholder in item:
            raise ValueError(
                f"sample {i}: the answer holds the placeholder {placeholder!r}: images belong to "
                "the prompt"
            )
    return answers


def why_refused(error: Exception) -> str:
    """Why a sample was refused that was prepared alone, so that its number, 0, says nothing.

    Example:
        >>> why_refused(ValueError("sample 0: the prompt is empty ('')"))
        "ValueError: the prompt is empty ('')"
    """
    words = [str(error).removeprefix("sample 0: "), *getattr(error, "__notes__", [])]
    return f"{type(error).__name__}: {' '.join(words)}"
