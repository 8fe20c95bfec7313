from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import replace
from unittest.mock import patch

import pytest
import transformers
from transformers import Blip2Config, LlavaConfig, OPTConfig, PhiConfig, T5Config

import vlm_lens.architectures as package
from vlm_lens.architectures import (
    BLOCKS,
    Architecture,
    ArchitectureError,
    architecture_of,
    blocks_of,
    records,
    register_architecture,
    supported_architectures,
)
from vlm_lens.architectures.blip import BLIP2_OPT, BLIP2_T5
from vlm_lens.architectures.llava import LLAVA

BLIP2 = "Blip2ForConditionalGeneration"


@pytest.fixture(autouse=True)
def registry_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("vlm_lens.architectures.registry._RECORDS", records())
    with patch.dict(BLOCKS):
        yield


def written_records() -> dict[str, Architecture]:
    """Every record in the package, by the module and the name it is written under."""
    modules = [
        importlib.import_module(f"{package.__name__}.{module.name}")
        for module in pkgutil.iter_modules(package.__path__)
        if not module.ispkg
    ]
    return {
        f"{module.__name__}.{name}": value
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, Architecture)
    }


def test_every_record_in_the_package_is_registered():
    written = written_records()
    assert len(written) >= 19
    for name, record in written.items():
        assert any(record is registered for registered in records()), name
        assert record.model_class in supported_architectures()


def test_records_are_for_classes_of_transformers_and_no_two_for_the_same():
    known = [(record.model_class, record.text_types, record.vision_types) for record in records()]
    assert len(set(known)) == len(known)
    assert all(hasattr(transformers, model_class) for model_class, *_ in known)


def test_supported_architectures_are_named_once():
    names = supported_architectures()
    assert names == sorted(set(names))
    assert BLIP2 in names


@pytest.mark.parametrize(
    ("text", "record"), [(OPTConfig(), BLIP2_OPT), (T5Config(), BLIP2_T5)], ids=["opt", "t5"]
)
def test_the_text_model_decides_between_records_of_a_class(text, record: Architecture):
    assert architecture_of(BLIP2, Blip2Config(text_config=text)) is record


def test_a_text_model_without_record_is_refused_with_those_that_have_one():
    config = Blip2Config(text_config=PhiConfig())
    with pytest.raises(ArchitectureError, match=rf"{BLIP2}.*\['opt', 't5'\], got 'phi'"):
        architecture_of(BLIP2, config)


def test_a_record_without_text_types_is_for_all():
    config = LlavaConfig(text_config=PhiConfig())
    assert architecture_of("LlavaForConditionalGeneration", config) is LLAVA


def test_an_unknown_class_is_refused_with_the_list_and_the_way_to_add_it():
    with pytest.raises(
        ArchitectureError,
        match=r"LlavaForConditionalGeneration.*got GPT2\..*add_an_architecture\.md.*register_",
    ):
        architecture_of("GPT2", LlavaConfig())


def test_what_is_registered_last_is_taken_first():
    mine = replace(LLAVA, unembed="head")
    register_architecture(mine)
    assert architecture_of("LlavaForConditionalGeneration", LlavaConfig()) is mine
    assert records()[-1] is mine


def test_a_later_record_for_some_text_models_leaves_the_others_to_the_earlier_one():
    mine = replace(LLAVA, text_types=("phi",))
    register_architecture(mine)
    phi, llama = LlavaConfig(text_config=PhiConfig()), LlavaConfig()
    assert architecture_of("LlavaForConditionalGeneration", phi) is mine
    assert architecture_of("LlavaForConditionalGeneration", llama) is LLAVA


def test_the_list_of_records_is_a_copy():
    records().clear()
    assert records()


def test_blocks_are_found_by_model_type_and_can_be_added():
    with pytest.raises(ArchitectureError, match=r"'llama'.*got 'phi'.*BLOCKS.*`block`"):
        blocks_of(PhiConfig())
    BLOCKS["phi"] = BLOCKS["llama"]
    assert blocks_of(PhiConfig()) is BLOCKS["llama"]


def test_public_names_exist():
    for name in package.__all__:
        assert hasattr(package, name)
