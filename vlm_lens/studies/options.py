"""What a study declares, read from its source: options, defaults, choices and help."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any, Literal, get_args

from vlm_lens.studies.source import UNKNOWN, Source, SourceError, sections_of

TAKEN = (
    *("model", "device", "dtype", "data", "task", "tasks", "split", "n", "seed", "batch_size"),
    *("out", "help"),
    *("name", "run", "interrupted", "command", "versions", "weights", "samples"),
)
"""Options that every study has, and what else is kept by name beside them: none is called so."""

LATER = "controls"
"""An option that can be added to what is done: whether it was given, makes no results others."""

Kind = Literal["int", "float", "str", "bool"]

_NUMBERS = {("int",): "int", ("float",): "float", ("float", "int"): "float"}


@dataclass(frozen=True)
class Option:
    """One option of a study.

    Attributes:
        name: Its parameter.
        kind: What it takes.
        default: What it is unless given; None may be that too.
        choices: The only values that it takes, or ().
        is_many: Whether it takes several.
        help: What it says.
    """

    name: str
    kind: Kind
    default: Any
    choices: tuple[str, ...]
    is_many: bool
    help: str

    @property
    def flag(self) -> str:
        """As it is typed.

        Example:
            >>> Option("top_samples", "int", 50, (), False, "").flag
            '--top-samples'
        """
        return f"--{self.name.replace('_', '-')}"


@dataclass(frozen=True)
class Study:
    """What is declared about a study.

    Attributes:
        module, function: Where it is.
        name: Of its command.
        title, paper, n, task, needs: See `vlm_lens.studies.study`.
        check: The function beside it that refuses what can be refused without a model, if any.
        summary: What it says of itself first.
        description: What it says then.
        options: Its own options, in order.
        has_datasets: Whether it takes several data sets by name.
    """

    module: str
    function: str
    name: str
    title: str
    paper: str
    n: int
    task: str
    needs: tuple[str, ...]
    check: str | None
    summary: str
    description: str
    options: tuple[Option, ...]
    has_datasets: bool


def read_study(module: str, function: str) -> Study:
    """Reads what a study declares.

    Args:
        module: Its module, which is not imported.
        function: Its function.

    Raises:
        SourceError: The source is not there, is no study, or has an option of a type that no
            option can have.

    Example:
        >>> found = read_study("vlm_lens.analyses.culture", "culture")
        >>> found.name, [(o.flag, o.default) for o in found.options][:1]
        ('culture', [('--selector', 'ConAct')])
    """
    source = Source(module)
    node = source.function(function)
    declared = _declared(source, node)
    summary, description, helps = sections_of(ast.get_docstring(node) or "")
    if not summary:
        raise SourceError(f"{module}.{function} does not say what it is: write a docstring")
    arguments = node.args
    options = tuple(
        _option(source, argument, default, helps, f"{module}.{function}")
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        if argument.arg != "run"
    )
    return Study(
        module=module,
        function=function,
        summary=summary,
        description=description,
        options=options,
        has_datasets=any(argument.arg == "datasets" for argument in arguments.args),
        **declared,
    )


def _declared(source: Source, node: ast.FunctionDef) -> dict[str, Any]:
    for decorator in node.decorator_list:
        match decorator:
            case ast.Call(func=ast.Name(id="study"), args=[name], keywords=keywords):
                found = {str(k.arg): _written(source, k) for k in keywords}
                found = {
                    "task": "image",
                    "needs": (),
                    "check": None,
                    **found,
                    "name": source.value(name),
                }
                if not _is_declared(found):
                    raise SourceError(
                        f"{source.module}.{node.name}: expected @study to be given "
                        f"{', '.join(_FIELDS)}, written out"
                    )
                return {**found, "needs": tuple(found["needs"])}
    raise SourceError(f"{source.module}.{node.name} is no study: it has no @study(...)")


_FIELDS: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "title": str,
    "paper": str,
    "n": int,
    "task": str,
    "needs": (tuple, list),
    "check": (str, type(None)),
}


def _is_declared(found: dict[str, Any]) -> bool:
    return {*found} == {*_FIELDS} and all(isinstance(found[k], of) for k, of in _FIELDS.items())


def _written(source: Source, keyword: ast.keyword) -> Any:
    """What `study` is given; of a function its name."""
    if keyword.arg == "check" and isinstance(keyword.value, ast.Name):
        return keyword.value.id
    return source.value(keyword.value)


def _option(
    source: Source,
    argument: ast.arg,
    default: ast.expr | None,
    helps: dict[str, str],
    where: str,
) -> Option:
    place = f"{where}: the option {argument.arg!r}"
    if argument.arg in TAKEN:
        raise SourceError(f"{place} is called like one that every study has")
    if argument.arg not in helps:
        raise SourceError(f'{place} is not explained: add it to "Args:"')
    value = source.value(default)
    if default is None or value is UNKNOWN:
        raise SourceError(f"{place} needs a default that is written out")
    names, choices, is_many = _type(source, argument.annotation)
    kind = _NUMBERS.get(tuple(sorted(names)), next(iter(names)) if len(names) == 1 else "")
    if kind not in get_args(Kind):
        shown = "no type" if argument.annotation is None else ast.unparse(argument.annotation)
        raise SourceError(
            f"{place} has {shown}: expected int, float, str, bool, a Literal of texts, a Sequence "
            "of these but bool, or one of them or None"
        )
    if argument.arg == LATER and kind != "bool":
        raise SourceError(f"{place} can be added later, so it is a bool, got {kind}")
    return Option(argument.arg, kind, value, choices, is_many, helps[argument.arg])  # pyright: ignore[reportArgumentType]


def _type(source: Source, node: ast.expr | None) -> tuple[set[str], tuple[str, ...], bool]:
    """The names of the types that one value may have, its choices, and whether it is many."""
    match source.resolved(node):
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            one, other = _type(source, left), _type(source, right)
            return one[0] | other[0], one[1] + other[1], one[2] or other[2]
        case ast.Constant(value=None):
            return set(), (), False
        case ast.Name(id=name):
            return {name}, (), False
        case ast.Subscript(value=ast.Name(id="Literal"), slice=of):
            choices = source.value(of)
            choices = choices if isinstance(choices, tuple) else (choices,)
            is_text = all(isinstance(choice, str) for choice in choices)
            return {"str" if is_text else "?"}, tuple(map(str, choices)), False
        case ast.Subscript(value=ast.Name(id="Sequence"), slice=of):
            names, choices, _ = _type(source, of)
            return {"?"} if "bool" in names else names, choices, True
    return {"?"}, (), False
