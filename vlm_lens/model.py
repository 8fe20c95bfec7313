"""HookedVLM: a Hugging Face vision-language model in which every activation has a name."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from vlm_lens.architectures import architecture_of
from vlm_lens.architectures.base import module_at
from vlm_lens.architectures.components import (
    HookedAttention,
    HookedEncoder,
    HookedNorm,
    HookedProjector,
    build_blocks,
)
from vlm_lens.cache import ActivationCache
from vlm_lens.config import build_config
from vlm_lens.generation import Generation
from vlm_lens.hooks import Tap, input_of
from vlm_lens.hooks.attention import AttentionProbe, remember_attention
from vlm_lens.hooks.names import NamesFilter
from vlm_lens.inputs import Inputs, prepare
from vlm_lens.lens_surface import LensSurface
from vlm_lens.loading import load_model_and_processor

ReturnType = Literal["logits", "loss", "both"]
ModelInput = Inputs | Mapping[str, Tensor] | str | list[str] | Tensor
_ATTENTION_INNER = ("attn.hook_attn_scores", "attn.hook_pattern")


class HookedVLM(Generation, LensSurface):
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

    def __init__(self, hf_model: Any, *, processor: Any = None) -> None:
        super().__init__()
        self.architecture = architecture_of(type(hf_model).__name__)
        text = self.architecture.language_model
        self.hf_model = hf_model
        self.processor = processor
        self.cfg = build_config(hf_model, self.architecture)
        self._embed = (module_at(hf_model, self.architecture.embed),)
        self._unembed = (module_at(hf_model, self.architecture.unembed),)
        start = module_at(hf_model, text.start)
        self.vision_encoder = HookedEncoder(hf_model, self.architecture.vision_encoder)
        self.projector = HookedProjector(hf_model, self.architecture.projector)
        self.hook_embed = Tap(input_of(start, keyword="inputs_embeds"))
        self.blocks = nn.ModuleList(build_blocks(hf_model, text))
        if text.ln_final is not None:
            self.ln_final = HookedNorm(module_at(hf_model, text.ln_final))
        self.setup()
        self._attention: dict[str, AttentionProbe] = {
            name: module.probe
            for name, module in self.named_modules()
            if isinstance(module, HookedAttention)
        }
        self.train(hf_model.training)

    def __repr__(self) -> str:
        vision, text = self.cfg.vision_encoder, self.cfg
        n_parameters = sum(parameter.numel() for parameter in self.parameters())
        encoder = "" if vision is None else f"vision encoder {vision.n_layers} x {vision.d_mlp}, "
        return (
            f"HookedVLM({type(self.hf_model).__name__} of {n_parameters / 1e6:.1f}M parameters: "
            f"{encoder}language model {text.n_layers} x {text.d_mlp} neurons; "
            f"{len(self.hook_dict)} hook points)"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> HookedVLM:
        """A copy has taps of its own, in its own Hugging Face model."""
        if any(tap.has_hooks() for tap in self.hook_dict.values()):
            raise RuntimeError(
                "A model can be copied only without hooks, which would stay in the copy: "
                "leave the `hooks` block or call reset_hooks(including_permanent=True) first."
            )
        return HookedVLM(copy.deepcopy(self.hf_model, memo), processor=self.processor)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        dtype: torch.dtype | str | None = None,
        device: str | torch.device | None = None,
        **kwargs: Any,
    ) -> HookedVLM:
        """Load a model and its processor, in evaluation mode.

        Args:
            name: ``"shapes-llava"`` (bundled, offline), a local folder or a Hugging Face id.
            dtype: Weights' dtype; by default the one they are stored in.
            device: Where to put the model; use `device_map` for a model that is spread out.
            **kwargs: Passed to Hugging Face's `from_pretrained` (`device_map`, `revision`,
                `attn_implementation`, `quantization_config` ...). Remote code is not trusted
                unless `trust_remote_code=True` is passed, and only safetensors are loaded.

        Raises:
            OSError: The model cannot be found or reached.
            ArchitectureError: The model's class is not supported.
        """
        hf_model, processor = load_model_and_processor(name, dtype=dtype, device=device, **kwargs)
        return cls(hf_model, processor=processor)

    def to(self, *args: Any, **kwargs: Any) -> HookedVLM:
        """As `nn.Module.to`; `cfg` follows."""
        super().to(*args, **kwargs)
        self.cfg.dtype, self.cfg.device = self.W_E.dtype, str(self.W_E.device)
        return self

    # Inputs -----------------------------------------------------------------------------------

    def prepare(
        self,
        *,
        text: str | list[Any],
        images: Any = None,
        answer: str | list[str] | None = None,
    ) -> Inputs:
        """Turn images and text into the model's inputs, with a map of what each position is.

        Args:
            text: A prompt or a list of prompts, with or without the image placeholder; without
                it, the model's chat template is applied. Chat messages work too.
            images: PIL images, paths, arrays or tensors: one, several for one prompt, or one
                entry (an image, a list, None) for each prompt.
            answer: An answer to append to each prompt, for teacher forcing.

        Returns:
            Inputs for every method of this model, with one `TokenMap` for each prompt.

        Example:
            >>> from PIL import Image
            >>> from vlm_lens import HookedVLM
            >>> model = HookedVLM.from_pretrained("shapes-llava")
            >>> inputs = model.prepare(images=Image.new("RGB", (64, 64)), text="what color ?")
            >>> len(inputs.token_map[0].positions("image"))
            64
        """
        if self.processor is None:
            raise ValueError("prepare needs a processor: HookedVLM(hf_model, processor=processor).")
        inputs = prepare(
            self.processor, self.hf_model.config, images=images, text=text, answer=answer
        )
        return inputs.to(self.cfg.device)

    def _hf_inputs(self, given: ModelInput, prepend_bos: bool | None) -> dict[str, Any]:
        """Whatever the user gave, as keyword arguments of the Hugging Face forward."""
        if isinstance(given, str) or (isinstance(given, list) and given):
            tokens, mask = self._tokenize(given, prepend_bos, truncate=False)
            padding = {} if mask.all() else {"attention_mask": mask}
            return {"input_ids": tokens, **padding}
        if isinstance(given, Inputs):
            return dict(given.to(self.cfg.device))
        if isinstance(given, Mapping):
            return dict(given)
        if isinstance(given, Tensor) and not given.is_floating_point() and given.ndim in (1, 2):
            tokens = given[None] if given.ndim == 1 else given
            return {"input_ids": tokens.to(self.cfg.device)}
        got = f"{given.dtype} of shape {list(given.shape)}" if isinstance(given, Tensor) else given
        raise TypeError(
            "Expected what model.prepare() returns, text, a list of texts, or integer tokens of "
            f"shape [batch, pos], got {got!r}."
        )

    def _check(self, arguments: dict[str, Any]) -> None:
        """Refuse tokens that the model would run on without a word, but not as they are meant."""
        tokens = arguments.get("input_ids")
        if tokens is None or "past_key_values" in arguments:
            return
        n_image = int((tokens == self.cfg.image_token_id).sum())
        if tokens.shape[1] > self.cfg.n_ctx:
            raise ValueError(
                f"Expected at most {self.cfg.n_ctx} positions, the model's context, but got "
                f"{tokens.shape[1]}. Shorten the text or use fewer images."
            )
        if n_image and "pixel_values" not in arguments:
            raise ValueError(
                f"The tokens hold {n_image} image positions but no image came with them. "
                "Pass what model.prepare(images=..., text=...) returns, or pixel_values=..."
            )

    # Forward ----------------------------------------------------------------------------------

    def forward(
        self,
        input: ModelInput,
        return_type: ReturnType | None = "logits",
        *,
        loss_per_token: bool = False,
        prepend_bos: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the model.

        Args:
            input: What `prepare` returns, raw text (no chat template), or tokens [batch, pos].
            return_type: ``"logits"`` [batch, pos, d_vocab], ``"loss"`` (mean cross entropy of the
                next token, over the answer if `prepare` was given one, else over all text),
                ``"both"`` or None.
            loss_per_token: One loss for each predicted position [batch, pos - 1] instead of the
                mean; 0 at positions that do not count.
            prepend_bos: For raw text, as in `to_tokens`.
            **kwargs: Passed to the Hugging Face forward.
        """
        if return_type not in ("logits", "loss", "both", None):
            raise ValueError(
                f"Expected return_type 'logits', 'loss', 'both' or None, got {return_type!r}."
            )
        arguments = {**self._hf_inputs(input, prepend_bos), **kwargs}
        self._check(arguments)
        self._n_runs += 1
        logits = self.hf_model(**arguments).logits
        if return_type is None:
            return None
        if return_type == "logits":
            return logits
        loss = self._loss(logits, arguments, input, per_token=loss_per_token)
        return loss if return_type == "loss" else (logits, loss)

    def _loss(
        self,
        logits: Float[Tensor, "batch pos d_vocab"],
        arguments: dict[str, Any],
        given: ModelInput,
        *,
        per_token: bool,
    ) -> Float[Tensor, ""] | Float[Tensor, "batch predicted"]:
        targets = arguments["input_ids"][:, 1:]
        counts = self._counts(arguments, given)[:, 1:].to(logits.device)
        each = F.cross_entropy(
            logits[:, :-1].float().flatten(0, 1), targets.flatten(), reduction="none"
        ).view(targets.shape)
        each = each * counts
        return each if per_token else each.sum() / counts.sum()

    def _counts(self, arguments: dict[str, Any], given: ModelInput) -> Bool[Tensor, "batch pos"]:
        """The tokens whose prediction is scored: the answers, or all text where there is none."""
        tokens: Int[Tensor, "batch pos"] = arguments["input_ids"]
        if isinstance(given, Inputs):
            answer = given.positions_mask("answer").to(tokens.device)
            if answer.any():
                return answer
        mask = arguments.get("attention_mask")
        real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.bool()
        return real & (tokens != self.cfg.image_token_id)

    # Hooks and cache --------------------------------------------------------------------------

    def run_with_hooks(
        self,
        *model_args: Any,
        fwd_hooks: Any = (),
        bwd_hooks: Any = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **model_kwargs: Any,
    ) -> Any:
        """Run the model once with hooks that are gone afterwards.

        Args:
            *model_args: As `forward`.
            fwd_hooks: Pairs of a name, glob, list or predicate, and ``fn(tensor, hook)``.
            bwd_hooks: The same on gradients; keep them with ``reset_hooks_end=False`` until
                `backward` has run, or use `hooks`.
            reset_hooks_end: Whether to remove the hooks at the end.
            clear_contexts: Whether to empty the hook points' `ctx` too.
            **model_kwargs: As `forward`.

        Example:
            >>> from vlm_lens import HookedVLM
            >>> model = HookedVLM.from_pretrained("shapes-llava")
            >>> seen = []
            >>> hook = ("blocks.0.hook_mlp_out", lambda tensor, hook: seen.append(hook.name))
            >>> _ = model.run_with_hooks("what color", fwd_hooks=[hook])
            >>> seen
            ['blocks.0.hook_mlp_out']
        """
        with self.hooks(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts):
            return self.forward(*model_args, **model_kwargs)

    def run_with_cache(
        self,
        *model_args: Any,
        names_filter: NamesFilter = None,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        incl_bwd: bool = False,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        pos_slice: Any = None,
        dtype: torch.dtype | None = None,
        return_cache_object: bool = True,
        **model_kwargs: Any,
    ) -> tuple[Any, Any]:
        """Run the model and keep activations.

        Args:
            *model_args: As `forward`.
            names_filter: A name, a glob, a list of these or a predicate. None keeps everything
                but attention scores and patterns, which the cache computes when asked for.
            device: Where kept activations go; by default they stay where they are.
            remove_batch_dim: Drop the batch dimension of a batch of one.
            incl_bwd: Also run backward on the output (use ``return_type="loss"``) and keep the
                gradients, under the names with ``_grad``.
            reset_hooks_end: Whether to remove the hooks at the end.
            clear_contexts: Whether to empty the hook points' `ctx` too.
            pos_slice: Keep only these positions of the language model's activations.
            dtype: What kept activations are converted to.
            return_cache_object: Return an `ActivationCache`; else a plain dictionary.
            **model_kwargs: As `forward`.

        Returns:
            What `forward` returns, and the cache.
        """
        everything = names_filter is None
        if everything:
            names_filter = [n for n in self.hook_dict if not n.endswith(_ATTENTION_INNER)]
        kept, fwd, bwd = self.get_caching_hooks(
            names_filter, incl_bwd, device, remove_batch_dim, None, pos_slice, dtype=dtype
        )
        deferred: dict[str, Callable[[], Tensor]] = {}
        with ExitStack() as stack:
            if everything and pos_slice is None:
                deferred = stack.enter_context(remember_attention(self._attention))
            # Without a filter nothing in particular was asked for, so silence is no surprise.
            hooks = (
                self._set(self._resolve(fwd, bwd), reset_hooks_end, clear_contexts)
                if everything
                else self.hooks(fwd, bwd, reset_hooks_end, clear_contexts)
            )
            stack.enter_context(hooks)
            output = self.forward(*model_args, **model_kwargs)
            if incl_bwd:
                output.backward()
        if not return_cache_object:
            return output, kept
        given = model_args[0] if model_args else model_kwargs.get("input")
        maps = given.token_map if isinstance(given, Inputs) and pos_slice is None else None
        cache = ActivationCache(
            kept,
            self,
            has_batch_dim=not remove_batch_dim,
            token_maps=maps,
            deferred={
                name: partial(_moved, make, device, dtype) for name, make in deferred.items()
            },
        )
        return output, cache


def _moved(make: Callable[[], Tensor], device: Any, dtype: torch.dtype | None) -> Tensor:
    return make().to(device=device, dtype=dtype)
