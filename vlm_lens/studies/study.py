"""`study`, which declares that a function is a study."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar, get_args

Need = Literal["answers", "categories", "images"]
"""What samples may have to have."""

FIRST = (("model", "samples"), ("model", "datasets"))
"""The positional parameters of a study: one data set, or several by name."""

F = TypeVar("F", bound=Callable[..., Any])


def study(
    name: str,
    *,
    title: str,
    paper: str,
    n: int,
    task: str = "image",
    needs: Sequence[Need] = (),
    check: Callable[..., None] | None = None,
) -> Callable[[F], F]:
    """Declares that a function is a study: ``vlm-lens NAME`` runs it.

    The function takes a model, samples (or ``datasets``: several lists of them by name) and
    keyword-only options, ``run`` among them, and gives a `vlm_lens.results.Result`. Its options are
    what the command's are: their types, defaults and what "Args:" says of them. They are read from
    its source, before anything is imported, so all that is declared is written out.

    A study of another package is found by an entry point of the group ``vlm_lens.studies``.

    Args:
        name: Of the command.
        title: In a few words, for the page.
        paper: Where it is from.
        n: How many samples there are by default.
        task: What is asked about the bundled world by default.
        needs: What samples have to have: those without images are left out with a note, one of
            them has to have an answer, all have to have a category.
        check: Takes the samples and the options, and raises ValueError for what can be refused
            before a model is loaded.

    Raises:
        TypeError: The function has other parameters.
        ValueError: The name is no word, or a need is unknown.

    Example:
        >>> from vlm_lens.passes import Run
        >>> @study("widths", title="How wide layers are", paper="none", n=1)
        ... def widths(model, samples, *, least: int = 1, run: Run = Run()):
        ...     "How wide layers are."
        >>> @study("widths", title="How wide layers are", paper="none", n=1)
        ... def wrong(model, samples):
        ...     "How wide layers are."
        Traceback (most recent call last):
        ...
        TypeError: expected the study 'widths' to take (model, samples or datasets, *, ..., run)...
    """
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise ValueError(f"expected the name of a study in small letters and dashes, got {name!r}")
    if wrong := [need for need in needs if need not in get_args(Need)]:
        raise ValueError(f"expected needs of {get_args(Need)}, got {wrong[0]!r}")

    def declared(function: F) -> F:
        parameters = inspect.signature(function).parameters
        first = tuple(n for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD)
        is_keyword = {n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
        if first not in FIRST or "run" not in is_keyword:
            raise TypeError(
                f"expected the study {name!r} to take (model, samples or datasets, *, ..., run), "
                f"got {inspect.signature(function)}"
            )
        fields = {"name": name, "title": title, "paper": paper, "n": n, "task": task}
        function.__dict__["study"] = {**fields, "needs": tuple(needs), "check": check}
        return function

    return declared
