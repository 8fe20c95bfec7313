"""The slow, obvious way to do without neurons: plain PyTorch hooks, one sample, one set at a time.

Nothing here uses hook points: a neuron is an output channel of a linear layer of the Hugging Face
model, found by the layer's own name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tests.tiny import picture
from vlm_lens import HookedVLM
from vlm_lens.data import Sample
from vlm_lens.neurons.neuron import Neuron

LLAVA = {
    r"blocks\.(\d+)\.mlp\.hook_pre": r"model.language_model.layers.\1.mlp.gate_proj",
    r"blocks\.(\d+)\.mlp\.hook_pre_linear": r"model.language_model.layers.\1.mlp.up_proj",
    r"blocks\.(\d+)\.hook_mlp_out": r"model.language_model.layers.\1.mlp.down_proj",
    r"vision_encoder\.blocks\.(\d+)\.mlp\.hook_pre": (
        r"model.vision_tower.encoder.layers.\1.mlp.fc1"
    ),
    r"vision_encoder\.blocks\.(\d+)\.hook_mlp_out": r"model.vision_tower.encoder.layers.\1.mlp.fc2",
    r"projector\.mlp\.hook_pre": r"model.multi_modal_projector.linear_1",
    r"projector\.hook_out": r"model.multi_modal_projector.linear_2",
}
"""Of LLaVA, the linear layer behind each hook name that shows output channels."""

_TEXT = ("blocks.", "encoder.", "decoder.")

SAMPLES = [
    Sample([picture(0)], "what color is the circle ?", answer="red circle"),
    Sample([], "is the square blue ?", answer="one"),
    Sample([picture(1, size=(50, 34))], "color", answer="the square is left . a circle"),
    Sample([picture(2), picture(3)], "left right ?", answer="two two"),
    Sample([], "two :", answer="green ."),
]
"""Prompts of different lengths, some of them without a picture."""


def first_linears(family: str) -> dict[str, str]:
    """Of a family, the first linear layers of MLPs in its language model and vision tower."""
    text, tower = _FIRST.get(family, ("", ""))
    text = text or "model.language_model.layers.{}.mlp.gate_proj"
    tower = tower or "model.vision_tower.encoder.layers.{}.mlp.fc1"
    found = {
        r"vision_encoder\.blocks\.(\d+)\.mlp\.hook_pre": tower.format(r"\1"),
        r"blocks\.(\d+)\.mlp\.hook_pre": text.format(r"\1"),
    }
    if family.endswith("t5"):
        stack = "language_model.{}.block.{}.layer.{}.DenseReluDense.wi_0"
        found[r"encoder\.blocks\.(\d+)\.mlp\.hook_pre"] = stack.format("encoder", r"\1", 1)
        found[r"decoder\.blocks\.(\d+)\.mlp\.hook_pre"] = stack.format("decoder", r"\1", 2)
    return found


_BLIP_TOWER = "vision_model.encoder.layers.{}.mlp.fc1"
_IDEFICS = (
    "model.text_model.layers.{}.mlp.gate_proj",
    "model.vision_model.encoder.layers.{}.mlp.fc1",
)
_FIRST = {
    "instructblip-llama": ("language_model.model.layers.{}.mlp.gate_proj", _BLIP_TOWER),
    "instructblip-t5": ("", _BLIP_TOWER),
    "blip2-opt": ("language_model.model.decoder.layers.{}.fc1", _BLIP_TOWER),
    "blip2-t5": ("", _BLIP_TOWER),
    "qwen2_vl": ("", "model.visual.blocks.{}.mlp.fc1"),
    "qwen2_5_vl": ("", "model.visual.blocks.{}.mlp.gate_proj"),
    "qwen3_vl": ("", "model.visual.blocks.{}.mlp.linear_fc1"),
    "idefics3": _IDEFICS,
    "smolvlm": _IDEFICS,
    "internvl": ("", "model.vision_tower.encoder.layer.{}.mlp.fc1"),
    "mllama": ("", "model.vision_model.transformer.layers.{}.mlp.fc1"),
    "mistral3": ("", "model.vision_tower.transformer.layers.{}.feed_forward.gate_proj"),
    "kosmos2": (
        "text_model.model.layers.{}.ffn.fc1",
        "vision_model.model.encoder.layers.{}.mlp.fc1",
    ),
}


def linear_of(hf: nn.Module, name: str, table: Mapping[str, str] = LLAVA) -> nn.Linear:
    """The linear layer whose output channels a hook name shows."""
    for pattern, path in table.items():
        if match := re.fullmatch(pattern, name):
            linear = hf.get_submodule(match.expand(path))
            assert isinstance(linear, nn.Linear)
            return linear
    raise KeyError(name)


@contextmanager
def without(
    hf: nn.Module,
    neurons: Iterable[Neuron],
    *,
    fill: Mapping[str, Tensor] | None = None,
    first_token: bool = True,
    table: Mapping[str, str] = LLAVA,
) -> Iterator[None]:
    """A model of one unpadded sample without some neurons, prompt and generated tokens alike."""
    by_name: dict[str, list[int]] = {}
    for neuron in neurons:
        by_name.setdefault(neuron.name, []).append(neuron.index)
    handles = [
        linear_of(hf, name, table).register_forward_hook(
            _setting(
                channels,
                values=torch.zeros(len(channels)) if fill is None else fill[name][channels],
                start=int(not first_token and name.startswith(_TEXT)),
            )
        )
        for name, channels in by_name.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _setting(channels: list[int], *, values: Tensor, start: int) -> Callable[..., Tensor]:
    """A hook that sets channels, the first position of what comes first left out if asked for."""
    n_calls = 0

    def hook(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        nonlocal n_calls
        output = output.clone()
        output[..., (start if n_calls == 0 else 0) :, channels] = values.to(output.dtype)
        n_calls += 1
        return output

    return hook


@dataclass
class Slow:
    """A model without some neurons, asked one sample at a time.

    Args:
        model: Only its Hugging Face model runs, on what its `prepare` makes.
        table: As for `linear_of`.
        options: For `without`.
        max_new_tokens: At most so many tokens of an answer.
        never: Tokens that are not generated.
    """

    model: HookedVLM
    table: Mapping[str, str] = field(default_factory=lambda: LLAVA)
    options: dict[str, Any] = field(default_factory=dict)
    max_new_tokens: int = 6
    never: Sequence[int] = ()

    @torch.no_grad()
    def answer(self, sample: Sample, neurons: Iterable[Neuron] = ()) -> list[int]:
        """The tokens of the greedy answer, the one that ends it included."""
        inputs = dict(self._prepared(sample))
        hf: Any = self.model.hf_model
        for name in ("decoder_input_ids", "decoder_attention_mask"):
            inputs.pop(name, None)
        with without(hf, neurons, table=self.table, **self.options):
            tokens = hf.generate(
                **inputs,
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                suppress_tokens=list(self.never) or None,
            )
        is_decoder = self.model.cfg.is_encoder_decoder
        return tokens[0, 1 if is_decoder else inputs["input_ids"].shape[1] :].tolist()

    def text(self, sample: Sample, neurons: Iterable[Neuron] = ()) -> str:
        """The greedy answer in words."""
        tokens = self.answer(sample, neurons)
        return self.model.tokenizer.decode(tokens, skip_special_tokens=True).strip()

    @torch.no_grad()
    def nll(
        self, sample: Sample, answer: list[int] | str, neurons: Iterable[Neuron] = ()
    ) -> tuple[float, int]:
        """The sum of -log p over an answer's tokens, and their number."""
        if isinstance(answer, str):
            inputs = dict(self._prepared(sample, answer=answer))
            n = len(self.model.tokenizer(answer, add_special_tokens=False)["input_ids"])
        else:
            prompt = self._prepared(sample)
            behind = torch.tensor([answer])
            n = len(answer)
            if self.model.cfg.is_encoder_decoder:
                start = prompt["decoder_input_ids"]
                inputs = {**prompt, "decoder_input_ids": torch.cat([start, behind], dim=1)}
            else:
                inputs = dict(prompt.extend(torch.cat([prompt.input_ids, behind], dim=1)))
        with without(self.model.hf_model, neurons, table=self.table, **self.options):
            [logits] = self.model.hf_model(**inputs).logits
        [tokens] = inputs.get("decoder_input_ids", inputs["input_ids"])
        log_p = logits.double().log_softmax(-1)
        total = -sum(float(log_p[i - 1, tokens[i]]) for i in range(len(tokens) - n, len(tokens)))
        return total, n

    def _prepared(self, sample: Sample, **kwargs: Any) -> Any:
        return self.model.prepare(text=sample.text, images=sample.images or None, **kwargs)
