"""Results: tables, tensors, neurons and notes, saved, loaded and shown in one way."""

from vlm_lens.results.files import HALF_DONE, check_belongs, read_result, write_result
from vlm_lens.results.provenance import hf_model_of, name_of, provenance
from vlm_lens.results.result import Result
from vlm_lens.results.section import Section

__all__ = [
    "HALF_DONE",
    "Result",
    "Section",
    "check_belongs",
    "hf_model_of",
    "name_of",
    "provenance",
    "read_result",
    "write_result",
]
