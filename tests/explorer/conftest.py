"""What the explorer's tests share: explorers of tiny models, and one of the bundled model."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from tests.families import build
from tests.families.base import picture
from tests.tiny import Tiny
from vlm_lens import HookedVLM
from vlm_lens.explorer.cards import Cards
from vlm_lens.explorer.facts import Results
from vlm_lens.explorer.layers import Layers
from vlm_lens.explorer.requests import Requests
from vlm_lens.explorer.subject import make_subject

QUESTION = "what color is the circle ?"


def requests_of(model: HookedVLM, *, answer: str | None = None, **options: Any) -> Requests:
    """The answers of an explorer of one question about one picture."""
    inputs = model.prepare(images=picture(0, size=(50, 34)), text=QUESTION)
    subject = make_subject(model, inputs, answer=answer, max_new_tokens=3)
    return Requests(subject, Layers(subject, **options), Results(), Cards(model))


@cache
def family_requests(name: str) -> Requests:
    """The same of a tiny model of a family."""
    hf_model, processor = build(name)
    return requests_of(HookedVLM(hf_model, processor=processor), answer="red square")


@pytest.fixture(scope="session")
def of_family() -> Callable[[str], Requests]:
    return family_requests


@pytest.fixture(scope="session")
def asked(llava: Tiny) -> Requests:
    """The answers of an explorer of a tiny LLaVA."""
    return requests_of(llava.model, answer="red square")
