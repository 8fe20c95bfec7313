"""What a pass has done so far, in a folder from which the same call goes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from vlm_lens.passes.data import Chunk
from vlm_lens.passes.passed import Key, Passed
from vlm_lens.passes.reducers import State
from vlm_lens.passes.run import Run
from vlm_lens.results import HALF_DONE, check_belongs, read_result, write_result


def save(run: Run, passed: Passed, belongs_to: Mapping[str, Any]) -> None:
    """Writes what is done into the folder of a run, with what has to be the same to go on."""
    keys = list(passed.states)
    tensors = {
        f"{i}/{name}": tensor
        for i, key in enumerate(keys)
        for name, tensor in passed.states[key].items()
    }
    fields = {
        "of": dict(belongs_to),
        "keys": keys,
        "n_samples": passed.n_samples,
        "left_out": {
            name: {str(number): reason for number, reason in of.items()}
            for name, of in passed.left_out.items()
        },
        "not_finite": passed.not_finite,
        "n_batches": passed.n_batches,
        "digest": passed.digest,
    }
    assert run.folder is not None
    write_result(run.folder, kind=run.kind, fields=fields, tensors=tensors)


def resumed(run: Run, chunks: Iterator[Chunk], belongs_to: Mapping[str, Any]) -> Passed:
    """What is in the folder, with its samples taken out of the chunks; nothing if there is none."""
    assert run.folder is not None
    if not (run.folder / f"{run.kind}.json").exists():
        return Passed()
    fields, tensors = read_result(run.folder, kind=run.kind, loses=HALF_DONE)
    check_belongs(fields["of"], belongs_to, folder=run.folder)
    digest = ""
    for chunk in islice(chunks, fields["n_batches"]):
        digest = chunk.chained(digest)
    if digest != fields["digest"]:
        raise ValueError(
            f"the checkpoint in {str(run.folder)!r} belongs to other samples: it has "
            f"{fields['n_batches']} batches, and not those that were given now. Name another "
            "folder, or delete this one to start anew."
        )
    keys: list[Key] = [tuple(key) for key in fields["keys"]]
    states: dict[Key, State] = {key: {} for key in keys}
    for place, tensor in tensors.items():
        number, _, name = place.partition("/")
        states[keys[int(number)]][name] = tensor
    return Passed(
        states=states,
        n_samples=fields["n_samples"],
        left_out={
            name: {int(number): reason for number, reason in of.items()}
            for name, of in fields["left_out"].items()
        },
        not_finite=fields["not_finite"],
        n_batches=fields["n_batches"],
        digest=digest,
    )
