"""Statistics the slow and obvious way: one sample at a time, PyTorch's own hooks, token ids."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from tests.families import build
from tests.families.base import picture
from tests.geometry.families import placeholder
from tests.masking.reference import Slow
from tests.tiny import build_tiny
from vlm_lens import HookedVLM
from vlm_lens.data import Sample
from vlm_lens.passes.answers import media_tokens

TEXTS = ["what color is the circle ?", "is the square red ?", "left", "two ?", "what is left ."]
ANSWERS = ["red circle", "two", "blue one .", "green", "left right"]
SIZES = [(82, 50), (34, 66), (50, 34), (40, 40), (66, 34)]
N_NEW = 5


def _blocks(prefix: str, path: str, end: str, site: str = "mlp.hook_act") -> dict[str, str]:
    return {f"{prefix}blocks.{i}.{site}": f"{path}.{i}.{end}" for i in range(3)}


_LLAVA = {
    **_blocks(
        "vision_encoder.",
        "model.vision_tower.encoder.layers",
        "mlp.activation_fn",
        "mlp.hook_post",
    ),
    **_blocks("", "model.language_model.layers", "mlp.act_fn"),
    "projector.mlp.hook_post": "model.multi_modal_projector.act",
}
MODULES: dict[str, dict[str, str]] = {
    "llava": _LLAVA,
    "llava_next": _LLAVA,
    "qwen2_5_vl": {
        **_blocks("vision_encoder.", "model.visual.blocks", "mlp.act_fn"),
        **_blocks("", "model.language_model.layers", "mlp.act_fn"),
        "projector.mlp.hook_post": "model.visual.merger.mlp.1",
    },
    "instructblip-t5": {
        **_blocks("encoder.", "language_model.encoder.block", "layer.1.DenseReluDense.act"),
        **_blocks("decoder.", "language_model.decoder.block", "layer.2.DenseReluDense.act"),
    },
}
"""For each site of a family, the module whose output it is."""


@cache
def built(name: str, dtype: torch.dtype = torch.float64) -> HookedVLM:
    """A tiny model; shared, so leave it as it is."""
    if name == "llava":
        return build_tiny("clip-llama", dtype=dtype).model
    hf, processor = build(name, dtype=dtype)
    return HookedVLM(hf, processor=processor)


def samples_of(name: str) -> list[Sample]:
    """Samples with pictures of all sizes; one without and one with two where the family can."""
    here = "<image>" if name == "llava" else placeholder(name)
    counts = [1, 1, 1, 1, 1] if name == "instructblip-t5" else [1, 0, 2, 1, 1]
    numbers = iter(range(9))
    found = []
    for text, answer, count in zip(TEXTS, ANSWERS, counts, strict=True):
        images = [picture(i, size=SIZES[i % 5]) for i in [next(numbers) for _ in range(count)]]
        found.append(Sample(images=images, text=f"{here * count} {text}", answer=answer))
    return found


@dataclass
class Record:
    """One sample at one site: everything there is.

    Attributes:
        values: Activations, [position, d].
        kinds: The modality and role of each position.
        weights: The attention that each position receives; None if not asked for.
    """

    values: Tensor
    kinds: list[tuple[str, str]]
    weights: Tensor | None = None


def records(
    name: str, samples: Sequence[Sample], *, answers: str | None = None, attention: bool = False
) -> dict[str, list[Record | None]]:
    """By site, what each sample's forward by itself gives; None where it does not come by."""
    model, modules = built(name), MODULES[name]
    found: dict[str, list[Record | None]] = {site: [] for site in modules}
    for sample in samples:
        inputs, n_answer = _inputs(model, sample, answers)
        outputs = _outputs(model.hf_model, inputs, modules)
        weights = _attention(model.hf_model, inputs) if attention else {}
        for site in modules:
            if site not in outputs:
                found[site].append(None)
                continue
            values = outputs[site].flatten(0, -2)
            kinds = _kinds(model, site, inputs, n_answer, len(values))
            found[site].append(Record(values, kinds, weights.get(site)))
    return found


def _inputs(model: HookedVLM, sample: Sample, answers: str | None) -> tuple[dict[str, Tensor], int]:
    """What goes into the model, and how many of its tokens are the answer's."""
    asked: dict[str, Any] = {"text": sample.text, "images": sample.images or None}
    if answers == "given":
        n = len(model.tokenizer(sample.answer, add_special_tokens=False)["input_ids"])
        return dict(model.prepare(**asked, answer=sample.answer)), n
    prompt = model.prepare(**asked)
    if answers is None:
        return dict(prompt), 0
    answer = Slow(model, max_new_tokens=N_NEW, never=media_tokens(model)).answer(sample)
    behind = torch.tensor([answer])
    if model.cfg.is_encoder_decoder:
        start = prompt["decoder_input_ids"]
        return {**prompt, "decoder_input_ids": torch.cat([start, behind], dim=1)}, len(answer)
    return dict(prompt.extend(torch.cat([prompt.input_ids, behind], dim=1))), len(answer)


@torch.no_grad()
def _outputs(hf: Any, inputs: dict[str, Tensor], modules: dict[str, str]) -> dict[str, Tensor]:
    outputs: dict[str, Tensor] = {}

    def keep(site: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
            # Qwen's rows of patches are all of one sample; so are the others' pictures.
            outputs[site] = output.double()

        return hook

    with ExitStack() as stack:
        for site, path in modules.items():
            stack.callback(hf.get_submodule(path).register_forward_hook(keep(site)).remove)
        hf(**inputs)
    return outputs


@torch.no_grad()
def _attention(hf: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """By site of the language model: the mean over heads of the columns' sums."""
    eager = copy.deepcopy(hf)
    eager.set_attn_implementation("eager")
    layers = eager(**inputs, output_attentions=True).attentions
    return {f"blocks.{i}.mlp.hook_act": a[0].double().mean(0).sum(0) for i, a in enumerate(layers)}


def _kinds(
    model: HookedVLM, site: str, inputs: dict[str, Tensor], n_answer: int, n: int
) -> list[tuple[str, str]]:
    if site.startswith(("vision_encoder", "projector")):
        return [("image", "prompt")] * n
    ids = inputs["decoder_input_ids" if site.startswith("decoder") else "input_ids"][0].tolist()
    if site.startswith("encoder"):
        n_answer = 0
    assert len(ids) == n
    config = model.hf_model.config
    image = getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)
    special = model.tokenizer.all_special_ids
    found = []
    for i, token in enumerate(ids):
        modality = "image" if token == image else "special" if token in special else "text"
        found.append((modality, "answer" if i >= n - n_answer else "prompt"))
    return found


def fits(kind: tuple[str, str], token_type: str) -> bool:
    """Whether a position is of a type, as its name says."""
    return any(
        all(word in kind or word == "any" for word in alternative.split())
        for alternative in token_type.split("+")
    )


def chosen(record: Record, token_type: str) -> list[int]:
    """The positions of a type."""
    return [i for i, kind in enumerate(record.kinds) if fits(kind, token_type)]
