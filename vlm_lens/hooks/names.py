"""Hook names: exact names, globs and predicates, and an answer when none of them matches."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache

NamesFilter = str | Iterable[str] | Callable[[str], bool] | None


class HookNameError(KeyError):
    """A hook name, glob or predicate that matches no hook point of the model."""

    def __str__(self) -> str:  # a KeyError would show its message in quotes
        return str(self.args[0])


@lru_cache(maxsize=256)
def _glob(pattern: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(pattern))


def is_glob(name: str) -> bool:
    """Whether a name holds a wildcard (``*``, ``?`` or ``[...]``)."""
    return any(character in name for character in "*?[")


def nearest_names(name: str, names: Iterable[str], *, n: int = 3) -> list[str]:
    """The `n` names most like `name`.

    Example:
        >>> nearest_names("blocks.0.mlp.hook_pos", ["blocks.0.mlp.hook_post", "hook_embed"], n=1)
        ['blocks.0.mlp.hook_post']
    """
    return difflib.get_close_matches(name, list(names), n=n, cutoff=0.4)


SWITCH_OF = {
    "hook_result": "use_attn_result",
    "hook_q_input": "use_split_qkv_input",
    "hook_k_input": "use_split_qkv_input",
    "hook_v_input": "use_split_qkv_input",
    "hook_attn_in": "use_attn_in",
    "hook_mlp_in": "use_hook_mlp_in",
}
"""Hook points that are there only after ``model.set_<switch>(True)``, and their switches."""
_OF_A_BLOCK = re.compile(r"(?<=\.)(hook_(?:[qkv]_input|attn_in))$")


def canonical(name: str) -> str:
    """A hook point's name for one of TransformerLens' two: the inputs of heads are attention's.

    Example:
        >>> canonical("blocks.0.hook_q_input")  # as `get_act_name` has it
        'blocks.0.attn.hook_q_input'
    """
    return name if ".attn." in name else _OF_A_BLOCK.sub(r"attn.\1", name)


_LAYER = re.compile(r"(?<=blocks\.)(\d+)(?=\.)")


def _no_match(name: str, names: Mapping[str, object]) -> HookNameError:
    kind = "The glob matches none" if is_glob(name) else "Not one"
    return HookNameError(
        f"{kind} of this model's {len(names)} hook points: {name!r}.{_hint(name, names)} "
        "`model.hook_dict` lists them all."
    )


def _hint(name: str, names: Mapping[str, object]) -> str:
    """A switch that is off, a layer that does not exist, or else the nearest names."""
    switch = SWITCH_OF.get(name.rpartition(".")[2])
    if switch is not None and not any(known.endswith(name.rpartition(".")[2]) for known in names):
        return f" It is there after `model.set_{switch}(True)`, in the language model's blocks."
    every_layer = _LAYER.sub("*", name)
    if every_layer != name and (siblings := [n for n in names if _glob(every_layer).match(n)]):
        layer = _LAYER.findall(name)[0]
        last = max(int(_LAYER.findall(sibling)[0]) for sibling in siblings)
        return f" {every_layer} has layers 0 to {last}, so there is no layer {layer}."
    near = nearest_names(name.replace("*", "0"), names)
    return f" Nearest: {', '.join(near)}." if near else ""


def resolve_names(names_filter: NamesFilter, names: Mapping[str, object]) -> list[str]:
    """Turn a filter into exact hook names, in the model's order, or refuse it.

    Args:
        names_filter: An exact name, a glob (``"blocks.*.mlp.hook_post"``), a predicate on names,
            or a list of names and globs. ``None`` stands for every name.
        names: The model's hook points by name (only the keys are read).

    Returns:
        The names that match.

    Raises:
        HookNameError: A name, a glob or a predicate matches nothing; the message lists the
            nearest real names.
        TypeError: The filter is none of the accepted kinds.

    Example:
        >>> points = dict.fromkeys(["hook_embed", "blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"])
        >>> resolve_names("blocks.*.hook_mlp_out", points)
        ['blocks.0.hook_mlp_out', 'blocks.1.hook_mlp_out']
    """
    parts = matches_of(names_filter, names)
    if len(parts) == 1:  # which is in the model's order already
        return parts[0]
    wanted = {name for part in parts for name in part}
    return [name for name in names if name in wanted]


def matches_of(names_filter: NamesFilter, names: Mapping[str, object]) -> list[list[str]]:
    """What each part of a filter matches: a name itself, a glob or a predicate perhaps many.

    Args:
        names_filter: As in `resolve_names`.
        names: As in `resolve_names`.

    Raises:
        HookNameError: A part matches nothing.
        TypeError: The filter is none of the accepted kinds.

    Example:
        >>> points = dict.fromkeys(["hook_embed", "blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"])
        >>> matches_of(["hook_embed", "blocks.*"], points)
        [['hook_embed'], ['blocks.0.hook_mlp_out', 'blocks.1.hook_mlp_out']]
    """
    if names_filter is None:
        return [list(names)]
    if isinstance(names_filter, str):
        return [_resolve_one(names_filter, names)]
    if callable(names_filter):
        return [_resolve_predicate(names_filter, names)]
    if not isinstance(names_filter, Iterable):
        raise TypeError(
            "Expected a hook name, a glob, a list of these, a predicate on names or None, "
            f"but got {type(names_filter).__name__}."
        )
    parts = []
    for name in names_filter:
        if not isinstance(name, str):
            raise TypeError(f"Expected a list of hook names, but it holds {name!r}.")
        parts.append(_resolve_one(name, names))
    return parts


def _resolve_one(name: str, names: Mapping[str, object]) -> list[str]:
    if name in names:
        return [name]
    name = canonical(name)
    if name in names:
        return [name]
    matches = [known for known in names if _glob(name).match(known)] if is_glob(name) else []
    if not matches:
        raise _no_match(name, names)
    return matches


def _resolve_predicate(predicate: Callable[[str], bool], names: Mapping[str, object]) -> list[str]:
    matches = [name for name in names if predicate(name)]
    if not matches:
        raise HookNameError(
            f"The predicate {predicate!r} is false for all {len(names)} hook points of this model. "
            "`model.hook_dict` lists their names."
        )
    return matches
