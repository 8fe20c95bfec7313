from __future__ import annotations

import pytest

import vlm_lens.architectures as package
from vlm_lens.architectures import architecture_of, supported_architectures
from vlm_lens.architectures.base import Architecture, ArchitectureError


def test_every_record_in_the_package_is_registered():
    from vlm_lens.architectures import llava

    records = [value for value in vars(llava).values() if isinstance(value, Architecture)]
    assert records
    for record in records:
        assert architecture_of(record.model_class) is record
        assert record.model_class in supported_architectures()


def test_an_unknown_class_is_refused_with_the_list_and_the_way_to_add_it():
    with pytest.raises(ArchitectureError, match=r"LlavaForConditionalGeneration.*got GPT2.*record"):
        architecture_of("GPT2")


def test_public_names_exist():
    for name in package.__all__:
        assert hasattr(package, name)
