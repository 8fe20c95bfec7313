"""Python files as they are written: what a study declares, read without importing anything.

So ``vlm-lens --help`` takes a tenth of a second, where torch and transformers take seconds.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from functools import cached_property
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

UNKNOWN = object()
"""What stands for an expression that cannot be read off the source."""


class SourceError(Exception):
    """The source of a study cannot be found, or does not say what it has to."""


def find(module: str) -> Path:
    """The file of a module, found without importing the packages that it is in.

    Raises:
        SourceError: There is none.

    Example:
        >>> find("vlm_lens.studies.source").name
        'source.py'
    """
    first, *inside = module.split(".")
    try:
        spec, name = find_spec(first) if first else None, first
    except (ImportError, ValueError) as error:  # such as of __main__
        raise SourceError(f"there is no source of {module!r}") from error
    for part in inside:
        if spec is None:
            break
        name = f"{name}.{part}"
        spec = PathFinder.find_spec(name, list(spec.submodule_search_locations or ()))
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise SourceError(f"there is no source of {module!r}")
    return Path(spec.origin)


@dataclass(frozen=True)
class Source:
    """A module's file.

    Attributes:
        module: Its name.
        seen: Modules on the way to it, which are not followed again.
    """

    module: str
    seen: frozenset[str] = field(default=frozenset(), repr=False)

    @cached_property
    def tree(self) -> ast.Module:
        """What it says."""
        try:
            return ast.parse(find(self.module).read_text(encoding="utf-8"))
        except (OSError, SyntaxError, ValueError) as error:
            raise SourceError(f"the source of {self.module!r} cannot be read: {error}") from error

    def function(self, name: str) -> ast.FunctionDef:
        """A function of the module.

        Raises:
            SourceError: There is none.
        """
        for node in self.tree.body:
            if isinstance(node, ast.FunctionDef) and node.name == name:
                return node
        raise SourceError(f"{self.module!r} has no function {name!r}")

    def resolved(self, node: ast.expr | None) -> ast.expr | None:
        """What a name stands for in this module, its imports followed; anything else as it is."""
        if not isinstance(node, ast.Name):
            return node
        for statement in self.tree.body:
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=value) if name == node.id:
                    return self.resolved(value)
                case ast.AnnAssign(target=ast.Name(id=name), value=value) if name == node.id:
                    return self.resolved(value)
                case ast.ImportFrom(module=str(module), level=level, names=names):
                    for alias in names:
                        if (alias.asname or alias.name) == node.id:
                            home = self._absolute(module, level)
                            return self._imported(home, alias.name) or node
        return node

    def _absolute(self, module: str, level: int) -> str:
        """The name of a module that is imported with so many dots in front."""
        if not level:
            return module
        is_package = find(self.module).name == "__init__.py"
        around = self.module.split(".")
        return ".".join([*around[: len(around) - level + is_package], module])

    def _imported(self, module: str, name: str) -> ast.expr | None:
        if module in self.seen or module in ("typing", "collections.abc", "pathlib"):
            return None
        other = Source(module, self.seen | {self.module})
        try:
            found = other.resolved(ast.Name(name))
        except SourceError:
            return None
        return None if isinstance(found, ast.Name) else found

    def value(self, node: ast.expr | None) -> Any:
        """What an expression of literals is worth, or a name for one; `UNKNOWN` for others."""
        resolved = self.resolved(node)
        if resolved is None:
            return None
        try:
            return ast.literal_eval(resolved)
        except (TypeError, ValueError):
            return UNKNOWN


def sections_of(docstring: str) -> tuple[str, str, dict[str, str]]:
    """The first sentence of a docstring, what follows it, and what "Args:" says of each argument.

    Example:
        >>> sections_of('''Which neurons are large.
        ...
        ...     The largest first.
        ...
        ...     Args:
        ...         ratio: How many,
        ...             as a share.
        ...     ''')
        ('Which neurons are large.', 'The largest first.', {'ratio': 'How many, as a share.'})
    """
    text = ast.get_docstring(ast.Module([ast.Expr(ast.Constant(docstring))], [])) or ""
    first, _, rest = text.partition("\n\n")
    before = re.split(r"^[A-Z][a-z]+:$", rest, maxsplit=1, flags=re.MULTILINE)[0]
    _, _, arguments = text.partition("\nArgs:\n")
    arguments = re.split(r"^\S", arguments, maxsplit=1, flags=re.MULTILINE)[0]
    entries = re.split(r"^    (?=\w+: )", arguments, flags=re.MULTILINE)
    named = (entry.partition(": ") for entry in entries if ": " in entry)
    return _line(first), _line(before), {name.strip(): _line(what) for name, _, what in named}


def _line(text: str) -> str:
    return " ".join(text.split())
