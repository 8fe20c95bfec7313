"""Which files of the package import which, read from their source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "vlm_lens"


@cache
def modules() -> dict[str, Path]:
    """Every file of the package by its module's name; a folder goes by its ``__init__``."""
    paths = sorted((ROOT / PACKAGE).rglob("*.py"))
    dotted = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths}
    return {name.removesuffix(".__init__"): path for path, name in dotted.items()}


@cache
def imports() -> dict[str, frozenset[str]]:
    """The modules of the package that each one imports, wherever in the file, for types too."""
    return {
        name: frozenset(_imported(ast.parse(path.read_text("utf-8")))) - {name}
        for name, path in modules().items()
    }


def _imported(tree: ast.AST) -> Iterator[str]:
    known = modules()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                yield inside if inside in known else node.module


def room(name: str) -> str:
    """The folder right below the package's in which a module is; its own name where it is in none.

    Example:
        >>> room("vlm_lens.analyses.explaining.sheet"), room("vlm_lens.model")
        ('analyses', 'model')
    """
    return name.split(".")[1] if "." in name else ""
