"""HookedVLM: a Hugging Face vision-language model in which every activation has a name."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm_lens.architectures import architecture_of
from vlm_lens.architectures.checks import check_settings, check_stacks
from vlm_lens.architectures.components import (
    HookedAttention,
    HookedEmbed,
    HookedProjector,
    HookedStack,
    HookedUnembed,
)
from vlm_lens.config import build_config, follow
from vlm_lens.hooks import Place
from vlm_lens.hooks.adapters import beneath, unwrapped
from vlm_lens.hooks.attention import AttentionTaps
from vlm_lens.hooks.step import Step
from vlm_lens.hooks.turns import turns_of
from vlm_lens.hooks.wired import WiredTaps
from vlm_lens.inputs import Inputs
from vlm_lens.keywords import knows_its_keywords
from vlm_lens.loading import load_model_and_processor
from vlm_lens.parts import Part, find_text, parts_of
from vlm_lens.running import Running
from vlm_lens.verification import Verification, example_inputs, verify


class HookedVLM(Running):
    """A vision-language model with named hook points, compatible with TransformerLens.

    The Hugging Face model inside is untouched and gives the logits; hook points are wired into it
    only while they have hooks. Names of the language model are TransformerLens' names, at the
    root; the vision encoder and the projector repeat them under ``vision_encoder.`` and
    ``projector.``. ``model.hook_dict`` lists all.

    Args:
        hf_model: A loaded Hugging Face VLM of a supported class.
        processor: Its processor, for `prepare` and everything that needs text or images.

    Raises:
        ArchitectureError: The model's class is not supported, or its parts are not in place.

    Example:
        >>> from vlm_lens import HookedVLM
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> _, cache = model.run_with_cache("what color", names_filter="blocks.*.mlp.hook_post")
        >>> cache["post", 0].shape[-1] == model.cfg.d_mlp
        True
    """

    vision_encoder: HookedStack
    audio_encoder: HookedStack
    qformer: HookedStack
    encoder: HookedStack
    decoder: HookedStack

    def __init__(self, hf_model: Any, *, processor: Any = None) -> None:
        if isinstance(hf_model, str | os.PathLike):
            raise TypeError(
                f"Expected a Hugging Face model, got its name: HookedVLM.from_pretrained("
                f"{os.fspath(hf_model)!r}) loads one."
            )
        super().__init__()
        hf_model = unwrapped(hf_model)
        self.architecture = architecture_of(
            type(hf_model).__name__, getattr(hf_model, "config", None)
        )
        self.hf_model = hf_model
        self._turns = turns_of(hf_model)
        self.processor = processor
        self._add_components()
        self.text = find_text(hf_model, self.architecture, getattr(self, "decoder", self))
        self._read_tokenizer()
        self._step = None if self.text is None else Step(self.text.place)
        self._wired_taps = WiredTaps(self._step)
        self.setup()
        self._attention: dict[str, AttentionTaps] = {
            name: module.probe
            for name, module in self.named_modules()
            if isinstance(module, HookedAttention)
        }
        self.train(hf_model.training)

    def _add_components(self) -> None:
        """Each part that there is under its name; a lone text model's blocks at the root."""
        architecture = self.architecture
        check_settings(architecture, self.hf_model.config)
        stacks = {
            name: HookedStack(self.hf_model, paths) for name, paths in architecture.parts().items()
        }
        check_stacks(self.hf_model, architecture, stacks)
        self._cfg = build_config(self.hf_model, architecture, stacks)
        text = stacks.pop("", None)
        for name in ("vision_encoder", "audio_encoder", "qformer"):
            if name in stacks:
                self.add_module(name, stacks.pop(name))
        self._add_vocabulary()
        if architecture.projector is not None:
            self.projector = HookedProjector(self.hf_model, architecture.projector)
        for name, stack in stacks.items():
            self.add_module(name, stack)
        if text is not None:
            for name in ("hook_embed", "hook_pos_embed", "blocks", "ln_final"):
                if hasattr(text, name):
                    setattr(self, name, getattr(text, name))

    def _add_vocabulary(self) -> None:
        """The token embedding and the unembedding of a model that reads and writes text."""
        architecture = self.architecture
        if architecture.embed is None or architecture.unembed is None:
            return
        self.embed = HookedEmbed(Place(self.hf_model, architecture.embed))
        self.unembed = HookedUnembed(
            Place(self.hf_model, architecture.unembed),
            self.hf_model.config.get_text_config(),
            capped=architecture.caps_logits,
        )

    @property
    def parts(self) -> list[Part]:
        """What the model is made of, from image to text.

        Example:
            >>> from vlm_lens import HookedVLM
            >>> model = HookedVLM.from_pretrained("shapes-llava")
            >>> [part.kind for part in model.parts]
            ['tower', 'connector', 'text']
        """
        return parts_of(self)

    def __repr__(self) -> str:
        n_parameters = sum(parameter.numel() for parameter in self.parameters())
        sizes = {
            "vision encoder": self.cfg.vision_encoder,
            "audio encoder": self.cfg.audio_encoder,
            "language model": None if self.text is None else self.cfg,
        }
        parts = ", ".join(
            f"{name} {cfg.n_layers} x {cfg.d_mlp}" for name, cfg in sizes.items() if cfg is not None
        )
        return (
            f"HookedVLM({type(self.hf_model).__name__} of {n_parameters / 1e6:.1f}M parameters: "
            f"{parts} neurons; {len(self.hook_dict)} hook points)"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> HookedVLM:
        """A copy has taps of its own, in its own Hugging Face model."""
        if any(tap.has_hooks() for tap in self.hook_dict.values()):
            raise RuntimeError(
                "A model can be copied only without hooks, which would stay in the copy: "
                "leave the `hooks` block or call reset_hooks(including_permanent=True) first."
            )
        made = HookedVLM(copy.deepcopy(self.hf_model, memo), processor=self.processor)
        made.cfg.default_prepend_bos = self.cfg.default_prepend_bos
        made._switch_as(self.cfg)
        return made

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        dtype: torch.dtype | str | None = None,
        device: str | torch.device | None = None,
        default_prepend_bos: bool | None = None,
        **kwargs: Any,
    ) -> HookedVLM:
        """Load a model and its processor, in evaluation mode.

        Args:
            name: ``"shapes-llava"`` (bundled, offline), ``"smollm2-135m"`` (a real language model,
                offline, from a package that pip brings), ``"shapes-smollm2"`` (that model with
                `shapes-llava`'s tower and a trained connector), a local folder or a Hugging Face
                id.
            dtype: Weights' dtype; by default the one they are stored in.
            device: Where to put the model; use `device_map` for a model that is spread out.
            default_prepend_bos: Whether raw text starts with ``<bos>`` where a call does not say;
                by default as the tokenizer does.
            **kwargs: Passed to Hugging Face's `from_pretrained` (`device_map`, `revision`,
                `attn_implementation`, `quantization_config` ...). `gguf_file` names a GGUF file
                in the folder or repository: its weights are made float32 once and kept in
                Hugging Face's cache folder (``HF_HOME``). Remote code is not trusted
                unless `trust_remote_code=True` is passed, and only safetensors are loaded.

        Raises:
            OSError: The model cannot be found or reached.
            ImportError: It comes in a package, or in a kind of file, that needs one more package.
            TypeError: Hugging Face knows no such option.
            ArchitectureError: The model's class is not supported.
        """
        hf_model, processor = load_model_and_processor(name, dtype=dtype, device=device, **kwargs)
        model = cls(hf_model, processor=processor)
        if default_prepend_bos is not None:
            model.cfg.default_prepend_bos = default_prepend_bos
        return model

    @property
    def cfg(self) -> Any:  # a HookedVLMConfig, of which TransformerLens makes most sizes optional
        """Sizes under TransformerLens' names; dtype, device and vocabulary as they are now."""
        if self.text is None:
            follow(self._cfg, self.hf_model, next(self.hf_model.parameters()))
        else:
            embed, unembed = beneath(self.embed.hf_module), beneath(self.unembed.hf_module)
            follow(self._cfg, self.hf_model, embed.weight, unembed.out_features)
        return self._cfg

    @knows_its_keywords
    def verify(self, inputs: Inputs | Mapping[str, Tensor] | None = None) -> Verification:
        """Prove on this very model that every hook point is what it is called.

        Three forwards and a backward: every hook point fires, the logits equal Hugging Face's with
        a hook on each, rows of attention patterns sum to one, and what is written reaches the
        output, or there is a reason why it does not (a block after the one that the projector
        reads).

        Args:
            inputs: What to run on; by default a picture of noise with a short question.

        Returns:
            What was found; print it.

        Raises:
            VerificationError: Something is not as it should be; the message lists what.

        Example:
            >>> from vlm_lens import HookedVLM
            >>> print(HookedVLM.from_pretrained("shapes-llava").verify())  # doctest: +ELLIPSIS
            203 hook points; logits equal Hugging Face's, bit for bit, with a hook on each.
            Rows of attention patterns sum to one within ...
        """
        return verify(self, example_inputs(self) if inputs is None else inputs)
