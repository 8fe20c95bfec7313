from __future__ import annotations

from dataclasses import replace

import pytest

from vlm_lens.architectures import records, register_architecture
from vlm_lens.architectures.base import AttentionPaths, ProjectorPaths
from vlm_lens.architectures.llava import LLAVA
from vlm_lens.architectures.table import (
    COLUMNS,
    aligned,
    language_models,
    markdown,
    support_rows,
    towers,
)


@pytest.fixture(autouse=True)
def registry_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlm_lens.architectures.registry._RECORDS", records())


def test_every_record_has_a_full_row():
    rows = support_rows()
    assert [row[0] for row in rows] == [record.model_class for record in records()]
    assert {len(row) for row in rows} == {len(COLUMNS)}
    assert all(all(row) for row in rows)


@pytest.mark.parametrize(
    "row",
    [
        ("PaliGemma", "siglip_vision_model *", "-", "linear", "gemma *", "fixed"),
        ("Blip2", "blip_2_vision_model", "blip_2_qformer", "linear", "t5", "query"),
        ("Qwen3VL", "qwen3_vl_vision", "-", "MLP, deepstack", "qwen3_vl_text", "qwen_vl"),
        ("Gemma3", "siglip_vision_model *", "-", "norm, linear", "gemma3_text", "pooled"),
        ("Kosmos2", "kosmos_2_vision_model", "-", "attention", "kosmos_2_text_model", "kosmos2"),
        ("Qwen2Audio", "qwen2_audio_encoder *", "-", "linear", "qwen2 *", "audio"),
    ],
    ids=lambda row: row[0],
)
def test_rows_say_what_the_families_are(row: tuple[str, ...]):
    assert (f"{row[0]}ForConditionalGeneration", *row[1:]) in support_rows()


def test_a_class_of_the_users_own_has_a_row():
    attn = AttentionPaths(module="resampler", q="q", k="k", v="v", o="o")
    projector = ProjectorPaths(module="resampler", norm="resampler.norm", attn=attn)
    mine = replace(LLAVA, model_class="Mine", projector=projector, layout=None)
    register_architecture(replace(mine, text_types=("llama", "phi3")))
    assert support_rows()[-1] == ("Mine", "any *", "-", "norm, attention", "llama, phi3", "-")


def test_a_record_that_another_one_replaces_is_not_shown():
    before = support_rows()
    register_architecture(replace(LLAVA, layout=None))
    after = support_rows()
    assert after[0] == (*before[0][:-1], "-")
    assert after[1:] == before[1:]


def test_columns_start_under_each_other():
    lines = aligned([("a", "bb", "c"), ("aaaa", "b", "ccc")]).splitlines()
    assert lines == ["a     bb  c", "aaaa  b   ccc"]


def test_markdown_has_one_line_a_class():
    lines = markdown().splitlines()
    assert len(lines) == 2 + len({r.model_class for r in records() if r.projector})
    assert language_models()[:2] == ["LlamaForCausalLM", "MistralForCausalLM"]
    assert r"| `Llava` | `clip_vision_model` \* | MLP | `llama` \* |" in lines
    assert "| `InstructBlip` | `instructblip_vision_model`, Q-Former | linear |" in markdown()
    assert {line.count("|") for line in lines} == {5}


def test_towers_alone_are_those_without_a_text_model():
    assert towers()[:2] == ["CLIPVisionModel", "SiglipVisionModel"]
    assert not any(name in markdown() for name in towers())
