"""How docstrings are read for the site."""

from __future__ import annotations

from typing import Any

import griffe


class ExamplesAreCode(griffe.Extension):
    """Reads "Example:", which is Google's too, as a section of examples, shown as code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            text = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
            obj.docstring.value = text
