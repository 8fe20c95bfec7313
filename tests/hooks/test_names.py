from __future__ import annotations

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_lens.hooks import HookNameError, resolve_names

NAMES = dict.fromkeys(
    ["hook_embed"]
    + [
        f"blocks.{layer}.{site}"
        for layer in range(12)
        for site in ("mlp.hook_post", "hook_mlp_out")
    ]
    + ["vision_encoder.blocks.0.mlp.hook_post"]
)


def test_exact_names_globs_lists_predicates_and_none():
    assert resolve_names("hook_embed", NAMES) == ["hook_embed"]
    assert len(resolve_names("blocks.*.mlp.hook_post", NAMES)) == 12
    assert len(resolve_names("*mlp.hook_post", NAMES)) == 13
    assert resolve_names("blocks.[01].hook_mlp_out", NAMES) == [
        "blocks.0.hook_mlp_out",
        "blocks.1.hook_mlp_out",
    ]
    assert len(resolve_names(lambda name: "embed" not in name, NAMES)) == len(NAMES) - 1
    assert resolve_names(None, NAMES) == list(NAMES)


def test_a_list_keeps_the_models_order_and_names_each_point_once():
    wanted = ["blocks.1.mlp.hook_post", "blocks.*.mlp.hook_post", "hook_embed"]
    found = resolve_names(wanted, NAMES)
    assert found == ["hook_embed", *(f"blocks.{layer}.mlp.hook_post" for layer in range(12))]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("blocks.0.mlp.hook_pots", r"'blocks.0.mlp.hook_pots'. Nearest: blocks.0.mlp.hook_post"),
        ("blocks.*.mlp.hook_pot", r"glob matches none of this model's 26 .* Nearest: blocks.0.mlp"),
        (["hook_embed", "hook_emb"], r"Nearest: hook_embed"),
        (
            "blocks.12.mlp.hook_post",
            r"blocks\.\*\.mlp\.hook_post has layers 0 to 11, so there is no layer 12",
        ),
        (lambda name: False, "is false for all 26"),
    ],
)
def test_what_matches_nothing_is_refused_with_the_nearest_names(wrong, message):
    with pytest.raises(HookNameError, match=message):
        resolve_names(wrong, NAMES)


@pytest.mark.parametrize("wrong", [3, [3], b"hook_embed"])
def test_other_kinds_of_filter_are_refused(wrong):
    with pytest.raises(TypeError, match="Expected"):
        resolve_names(wrong, NAMES)


@given(st.text(alphabet="blocks.0123*?_hpm", max_size=12))
def test_globs_are_shell_globs(pattern: str):
    expected = [name for name in NAMES if fnmatch.fnmatchcase(name, pattern)]
    if not expected:
        with pytest.raises(HookNameError):
            resolve_names(pattern, NAMES)
    else:
        assert resolve_names(pattern, NAMES) == expected
