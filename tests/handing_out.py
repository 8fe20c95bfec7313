"""A model that commands get, whatever they ask for."""

from __future__ import annotations

import pytest

from vlm_lens import HookedVLM

Asked = list[tuple[str, dict]]


def hand_out(monkeypatch: pytest.MonkeyPatch, model: HookedVLM) -> Asked:
    """Has `from_pretrained` return a model, and records what was asked for."""
    asked: Asked = []

    def load(name: str, **options: object) -> HookedVLM:
        asked.append((name, options))
        return model

    monkeypatch.setattr(HookedVLM, "from_pretrained", load)
    return asked
