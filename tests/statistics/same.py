"""Whether two statistics are the same, bit for bit or to rounding."""

from __future__ import annotations

import torch

from vlm_lens.statistics import NeuronStatistics

EXACT = {"keys", "positions", "largest", "smallest", "active"}


def assert_identical(one: NeuronStatistics, other: NeuronStatistics) -> None:
    """Bit for bit, everything but the date."""
    (fields, tensors), (other_fields, other_tensors) = one.packed(), other.packed()
    for about in (fields, other_fields):
        provenance = about["parameters"]["provenance"]
        about["parameters"] = about["parameters"] | {"provenance": provenance | {"date": ""}}
    assert fields == other_fields
    assert tensors.keys() == other_tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, other_tensors[name]), name


def assert_same(one: NeuronStatistics, other: NeuronStatistics, *, rtol: float = 1e-10) -> None:
    """Sums to rounding, everything else exactly."""
    (fields, tensors), (other_fields, other_tensors) = one.packed(), other.packed()
    for name in ("token_types", "ranges", "left_out"):
        assert fields[name] == other_fields[name], name
    assert _counts(one) == _counts(other)
    assert tensors.keys() == other_tensors.keys()
    for name, tensor in tensors.items():
        if name.rpartition("/")[2] in EXACT:
            assert torch.equal(tensor, other_tensors[name]), name
        else:
            torch.testing.assert_close(tensor, other_tensors[name], rtol=rtol, atol=1e-12)


def _counts(found: NeuronStatistics) -> dict[str, dict[tuple[int, ...], int]]:
    """At how many positions there were which types, by hook name."""
    return {
        name: {types: moments.count for types, moments in site.moments.items()}
        for name, site in found.sites.items()
    }
