"""CAN's score the slow and obvious way: one sample, one backward, PyTorch's own hooks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlm_lens import HookedVLM
from vlm_lens.data import Sample

GATED = {
    "mlp.hook_pre": "gate_proj",
    "mlp.hook_pre_linear": "up_proj",
    "hook_mlp_out": "down_proj",
}
CLIP = {"mlp.hook_pre": "mlp.fc1", "hook_mlp_out": "mlp.fc2"}
LLAMA = {site: f"mlp.{name}" for site, name in GATED.items()}
T5 = {"mlp.hook_pre": "wi_0", "mlp.hook_pre_linear": "wi_1", "hook_mlp_out": "wo"}
QFORMER = {
    "mlp.hook_pre": "intermediate_query.dense",
    "hook_mlp_out": "output_query.dense",
    "text_mlp.hook_pre": "intermediate.dense",
}
TWO_LAYERS = {
    "projector.mlp.hook_pre": "model.multi_modal_projector.linear_1",
    "projector.hook_out": "model.multi_modal_projector.linear_2",
}


def _blocks(prefix: str, path: str, sites: dict[str, str], n: int = 3) -> dict[str, str]:
    return {
        f"{prefix}blocks.{i}.{site}": f"{path}.{i}.{name}"
        for i in range(n)
        for site, name in sites.items()
    }


_LLAVA = {
    **_blocks("vision_encoder.", "model.vision_tower.encoder.layers", CLIP),
    **_blocks("", "model.language_model.layers", LLAMA),
    **TWO_LAYERS,
}
_BLIP = {
    **_blocks("vision_encoder.", "vision_model.encoder.layers", CLIP),
    **_blocks("qformer.", "qformer.encoder.layer", QFORMER, 2),
    "projector.hook_out": "language_projection",
}
MODULES: dict[str, dict[str, str]] = {
    "llava": _LLAVA,
    "llava_next": _LLAVA,
    "instructblip-llama": {
        **_BLIP,
        **_blocks("", "language_model.model.layers", LLAMA),
    },
    "instructblip-t5": {
        **_BLIP,
        **_blocks(
            "encoder.",
            "language_model.encoder.block",
            {site: f"layer.1.DenseReluDense.{name}" for site, name in T5.items()},
        ),
        **_blocks(
            "decoder.",
            "language_model.decoder.block",
            {site: f"layer.2.DenseReluDense.{name}" for site, name in T5.items()},
        ),
    },
    "qwen2_5_vl": {
        **_blocks("vision_encoder.", "model.visual.blocks", LLAMA),
        **_blocks("", "model.language_model.layers", LLAMA),
        "projector.mlp.hook_pre": "model.visual.merger.mlp.0",
        "projector.hook_out": "model.visual.merger.mlp.2",
    },
}
"""For each output site of a family, the linear layer it is the output of."""


@dataclass
class Run:
    """One sample: by hook name, activations and gradients of its answer's loss, in float64."""

    activations: dict[str, Tensor]
    gradients: dict[str, Tensor]
    n_prompt: int


def slow_runs(model: HookedVLM, samples: Sequence[Sample], modules: dict[str, str]) -> list[Run]:
    """One forward and one backward for each sample, the loss on its given answer."""
    return [_run(model, sample, modules) for sample in samples]


def _run(model: HookedVLM, sample: Sample, modules: dict[str, str]) -> Run:
    hf: Any = model.hf_model
    asked: dict[str, Any] = {"text": sample.text, "images": sample.images or None}
    inputs = dict(model.prepare(**asked, answer=sample.answer))
    outputs: dict[str, Any] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
            output.retain_grad()
            outputs[name] = output

        return hook

    with ExitStack() as stack:
        for name, path in modules.items():
            handle = hf.get_submodule(path).register_forward_hook(keep(name))
            stack.callback(handle.remove)
        logits = hf(**inputs).logits
    is_decoder = model.cfg.is_encoder_decoder
    tokens = inputs["decoder_input_ids" if is_decoder else "input_ids"]
    n_prompt = 1 if is_decoder else model.prepare(**asked).shape[1]
    loss = F.cross_entropy(logits[0, n_prompt - 1 : -1].double(), tokens[0, n_prompt:])
    loss.backward()
    model.hf_model.zero_grad(set_to_none=True)
    activations = {name: output.detach().double() for name, output in outputs.items()}
    gradients = {
        name: torch.zeros_like(activations[name]) if output.grad is None else output.grad.double()
        for name, output in outputs.items()
    }
    return Run(activations, gradients, n_prompt)


def slow_scores(
    runs: Sequence[Run],
    *,
    alpha: float,
    activation_power: float = 1.0,
    tokens: str = "mean",
    first_token: bool = True,
) -> dict[str, Tensor]:
    """The scores by hook name: the mean over samples of what each one's positions become."""
    totals: dict[str, Tensor] = {}
    for run in runs:
        for name, a in run.activations.items():
            g = run.gradients[name]
            each = (g.abs() ** alpha * a.abs() ** activation_power).flatten(0, -2)
            if name.startswith(("blocks", "encoder", "decoder")) and not first_token:
                each = each[1:]
            predicts = name.startswith(("blocks", "decoder"))
            last = each[run.n_prompt - 1] if predicts else each[-1]
            value = {"mean": each.mean(0), "max": each.amax(0), "sum": each.sum(0), "last": last}
            totals[name] = totals.get(name, 0) + value[tokens] / len(runs)
    return totals
