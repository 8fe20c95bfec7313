"""Generation with hooks at every step, and generation that keeps activations of every step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F
from transformer_lens.hook_points import HookPoint
from transformers import GenerationMixin
from transformers.generation.configuration_utils import DYNAMIC_CACHE_IMPLEMENTATIONS

from vlm_lens.cache import ActivationCache
from vlm_lens.hooks import resolve_names
from vlm_lens.hooks.names import NamesFilter
from vlm_lens.inputs import Inputs, TokenMap
from vlm_lens.inputs.batch import token_strings
from vlm_lens.inputs.positions import ends_of, is_answer
from vlm_lens.model_inputs import ModelInput, ModelInputs
from vlm_lens.run_rows import owners_of_run


class Generation(ModelInputs):
    """The part of `HookedVLM` that generates: Hugging Face's `generate`, KV cache on."""

    def generate(
        self,
        input: ModelInput,
        *,
        max_new_tokens: int = 20,
        return_type: Literal["str", "tokens"] = "str",
        **kwargs: Any,
    ) -> Any:
        """Generate an answer; hooks fire at every step.

        The first step holds the whole prompt, [batch, pos, ...]; each later step holds the one new
        position, [batch, 1, ...]. Encoders, Q-Former and projector run in the first step only. An
        encoder-decoder model reads the prompt in its encoder, once, and its decoder starts with the
        start token: `decoder_input_ids` among the inputs are what a forward reads, and not used.

        Args:
            input: What `prepare` returns, raw text, or tokens.
            max_new_tokens: At most so many new tokens.
            return_type: ``"str"``: only the new text, without special tokens (a list of them for
                a batch); ``"tokens"``: prompt and new tokens [batch, pos], of an encoder-decoder
                model the start token and new tokens.
            **kwargs: Passed to Hugging Face's `generate` (`do_sample`, `temperature` ...).

        Example:
            >>> from vlm_lens import HookedVLM
            >>> from PIL import Image
            >>> model = HookedVLM.from_pretrained("shapes-llava")
            >>> blank = Image.new("RGB", (64, 64))
            >>> inputs = model.prepare(images=blank, text="is there a red circle ?")
            >>> model.generate(inputs)
            'no'
        """
        if return_type not in ("str", "tokens"):
            raise ValueError(f"Expected return_type 'str' or 'tokens', got {return_type!r}.")
        arguments = self._generation_inputs(input, max_new_tokens)
        # With a static cache transformers compiles the forward on a GPU, without hooks set since.
        hooked = any(tap.has_hooks() for tap in self.hook_dict.values())
        options = {"disable_compile": True, **kwargs} if hooked else kwargs
        with self._run():
            tokens = self.hf_model.generate(**arguments, max_new_tokens=max_new_tokens, **options)
        if return_type == "tokens":
            return tokens
        answers = self._new_text(tokens, self._prompt_length(arguments))
        batched = input.batched if isinstance(input, Inputs) else len(answers) > 1
        return answers if batched else answers[0]

    def _generation_inputs(self, given: Any, max_new_tokens: int) -> dict[str, Any]:
        if max_new_tokens < 1:
            raise ValueError(f"Expected max_new_tokens of at least 1, got {max_new_tokens}.")
        arguments = self._hf_inputs(given, None, "left")
        for name in ("decoder_input_ids", "decoder_attention_mask"):
            arguments.pop(name, None)
        if "input_ids" not in arguments:
            raise ValueError(f"Expected input_ids to generate from, got {sorted(arguments)}.")
        self._check(arguments)
        return self._as_generate_masks(given, arguments)

    def _as_generate_masks(self, given: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        """Texts with their own mask; of bare tokens, all that is a pad token left out.

        Without a mask, Hugging Face's `generate` looks for pad tokens itself, anywhere. It does not
        where the pad token means something else too, or its settings name none: then the padding
        at the tokens' ends is left out.
        """
        tokens, mask = arguments["input_ids"], arguments.get("attention_mask")
        if isinstance(given, str | list):
            mask = torch.ones_like(tokens) if mask is None else mask
        elif mask is not None and not (isinstance(given, Mapping) and "attention_mask" in given):
            pad = self._pad_token()
            assert pad is not None  # or no mask would have been made
            mask = mask * (tokens != pad.id) if pad.is_only_padding else mask
        if mask is None:
            return arguments
        if not self.cfg.is_encoder_decoder and mask.ndim == 2 and not mask[:, -1].all():
            raise ValueError(
                "Expected prompts padded on the left, since an answer follows their last position, "
                'but these are padded on the right: model.to_tokens(texts, padding_side="left").'
            )
        return {**arguments, "attention_mask": mask}

    def _prompt_length(self, arguments: Mapping[str, Any]) -> int:
        """How many of the tokens that `generate` returns come before the new ones."""
        return 1 if self.cfg.is_encoder_decoder else arguments["input_ids"].shape[1]

    def _new_text(self, tokens: Int[Tensor, "batch pos"], n_prompt: int) -> list[str]:
        new = tokens[:, n_prompt:]
        return [text.strip() for text in self.tokenizer.batch_decode(new, skip_special_tokens=True)]

    def generate_with_cache(
        self,
        input: ModelInput,
        *,
        names_filter: NamesFilter,
        max_new_tokens: int = 20,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> tuple[Int[Tensor, "batch pos"], ActivationCache]:
        """Generate, and keep the activations of every position, prompt and answer alike.

        What is kept equals a teacher-forced run over the returned tokens: the last token, which
        `generate` itself never reads, is run too. Of an encoder-decoder model, ``encoder.`` holds
        the prompt and ``decoder.`` the start token and the new ones.

        Args:
            input: What `prepare` returns, raw text, or tokens.
            names_filter: Which activations to keep, as in `run_with_cache`; it must be given.
            max_new_tokens: At most so many new tokens.
            device: Where kept activations go.
            dtype: What they are converted to.
            **kwargs: Passed to Hugging Face's `generate`. There is no beam search, even where the
                model's own generation configuration asks for it.

        Returns:
            Tokens as `generate` returns them, and the cache over all these positions.

        Raises:
            ValueError: The options ask for more than one sequence, or one step of the model for
                each new token is not how they generate (a second model, guidance, a static cache);
                or the prompts are padded and the model is Kosmos-2.
        """
        _check_one_step_a_token(kwargs)
        if names_filter is None:
            raise ValueError(
                "Expected names_filter to say what to keep, e.g. 'blocks.*.hook_resid_post'."
            )
        names = resolve_names(names_filter, self.hook_dict)
        steps: dict[str, list[Tensor]] = {name: [] for name in names}

        def keep(tensor: Tensor, hook: HookPoint) -> None:
            steps[str(hook.name)].append(tensor.detach().to(device=device, dtype=dtype))

        arguments = self._generation_inputs(input, max_new_tokens)
        maps = input.token_map if isinstance(input, Inputs) else None
        _check_positions(self.cfg.architecture, arguments.get("attention_mask"))
        with self.hooks([(names_filter, keep)]), self._run(), _followed(self.hf_model) as loop:
            out = self.hf_model.generate(
                **arguments,
                max_new_tokens=max_new_tokens,
                use_cache=True,
                return_dict_in_generate=True,
                **{**_ONE_STEP_A_TOKEN, **kwargs},
            )
            n_new = out.sequences.shape[1] - self._prompt_length(arguments)
            if loop.n_steps == n_new:  # on Apple's GPUs, transformers may have read it already
                loop.read_last(out.sequences)
            owners = owners_of_run(
                self.hf_model,
                {**arguments, **self._generated(arguments, out.sequences, kwargs)},
                self.hook_dict,
                [name for name, parts in steps.items() if parts],
                maps,
            )
        kept = {name: _joined(name, parts, n_new) for name, parts in steps.items() if parts}
        maps = self._extended_maps(input, out.sequences) if isinstance(input, Inputs) else None
        return out.sequences, ActivationCache(kept, self, token_maps=maps, owners=owners)

    def _generated(
        self,
        arguments: Mapping[str, Any],
        tokens: Int[Tensor, "batch pos"],
        options: Mapping[str, Any],
    ) -> dict[str, Tensor]:
        """Tokens that `generate` returned, and a mask without what fills up behind an end."""
        n_prompt = self._prompt_length(arguments)
        mask = is_answer(tokens, n_prompt, ends_of(self.hf_model, options)).long()
        prefix, mask[:, :n_prompt] = "", 1
        if self.cfg.is_encoder_decoder:
            prefix = "decoder_"
        elif arguments.get("attention_mask") is not None:
            mask[:, :n_prompt] = arguments["attention_mask"]
        return {f"{prefix}input_ids": tokens, f"{prefix}attention_mask": mask}

    def _extended_maps(self, inputs: Inputs, tokens: Int[Tensor, "batch pos"]) -> list[TokenMap]:
        if self.cfg.is_encoder_decoder:  # the maps are of the encoder's positions
            return inputs.token_map
        new = tokens[:, inputs.shape[1] :].tolist()
        return [
            token_map.extend(token_strings(self.tokenizer, answer))
            for token_map, answer in zip(inputs.token_map, new, strict=True)
        ]


_ONE_STEP_A_TOKEN = {"num_beams": 1, "num_return_sequences": 1, "cache_implementation": "dynamic"}
_OTHER_STEPS = (
    *("assistant_model", "prompt_lookup_num_tokens", "guidance_scale", "custom_generate"),
    "past_key_values",
)


def _check_one_step_a_token(options: Mapping[str, Any]) -> None:
    """Refuse what makes the steps of `generate` something else than the positions in order."""
    if (options.get("num_beams") or 1) > 1 or (options.get("num_return_sequences") or 1) > 1:
        raise ValueError(
            "generate_with_cache follows one sequence for each prompt: num_beams and "
            "num_return_sequences must be 1."
        )
    asked = [name for name in _OTHER_STEPS if options.get(name) is not None]
    if asked:
        raise ValueError(
            f"generate_with_cache follows one step of the model for each new token: leave "
            f"{', '.join(asked)} out."
        )
    cache = options.get("cache_implementation") or "dynamic"
    if cache not in DYNAMIC_CACHE_IMPLEMENTATIONS:
        raise ValueError(
            "Expected a key-value cache that grows, since the last token is read too, got "
            f"cache_implementation={cache!r}: leave it out."
        )


def _check_positions(architecture: str, mask: Int[Tensor, "batch pos"] | None) -> None:
    """Refuse what Hugging Face generates at other positions than a forward has."""
    is_padded = mask is not None and not mask.bool().all()
    if architecture == "Kosmos2ForConditionalGeneration" and is_padded:
        raise ValueError(
            "In Kosmos-2, Hugging Face's generate counts padding among the positions of new "
            "tokens, a forward does not, so that what is kept would not be what a forward over "
            "the answer has: pass prompts one by one, or of the same length."
        )


@dataclass
class _Loop:
    """Hugging Face's decoding loop, as far as it has come.

    Attributes:
        model: The model it runs: the language model alone in BLIP and Kosmos-2.
        arguments: What it hands from step to step: masks, positions, the key-value cache.
        n_steps: How often it has run the model.
    """

    model: Any = None
    arguments: dict[str, Any] = field(default_factory=dict)
    n_steps: int = 0

    def follow(self, model: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Takes the place of the method that carries the arguments on to the next step."""
        self.model, self.n_steps = model, self.n_steps + 1
        self.arguments = type(model)._update_model_kwargs_for_generation(model, *args, **kwargs)
        return self.arguments

    @torch.no_grad()
    def read_last(self, tokens: Int[Tensor, "batch pos"]) -> None:
        """Run the token that was produced last, after everything before it."""
        step = self.model.prepare_inputs_for_generation(
            tokens, next_sequence_length=1, **self.arguments
        )
        self.model(**step, return_dict=True)


@contextmanager
def _followed(hf_model: Any) -> Iterator[_Loop]:
    """Follow `generate`, on whichever model inside it runs its loop.

    Families carry different things from step to step: rotary positions on three axes, masks of
    cross-attention, token types. Only the loop itself has them all.
    """
    loop = _Loop()
    generating = [module for module in hf_model.modules() if isinstance(module, GenerationMixin)]
    for module in generating:
        vars(module)["_update_model_kwargs_for_generation"] = partial(loop.follow, module)
    try:
        yield loop
    finally:
        for module in generating:
            del vars(module)["_update_model_kwargs_for_generation"]


def _joined(name: str, parts: list[Tensor], n_new: int) -> Tensor:
    """One activation from its steps: the prompt's positions, then one position a step."""
    if len(parts) == 1:  # encoders and projector, and what cross-attention reads of them
        return parts[0]
    if len(parts) != n_new + 1:
        raise RuntimeError(
            f"{name!r} came by {len(parts)} times for a prompt and {n_new} new tokens, so it is "
            "not known which position each was: generate with other options."
        )
    if name.endswith("hook_rot_k"):  # each step holds the keys of earlier positions too
        return torch.cat([parts[0], *(part[:, -1:] for part in parts[1:])], dim=1)
    if name.endswith(("hook_pattern", "hook_attn_scores")) and "cross_attn" not in name:
        masked = 0.0 if name.endswith("hook_pattern") else torch.finfo(parts[0].dtype).min
        n_keys = parts[0].shape[-1] + n_new
        # Keys end with the step's own position; those before a sliding window are not there.
        padded = [
            F.pad(part, (n_keys - (n_new - i) - part.shape[-1], n_new - i), value=masked)
            for i, part in enumerate(parts)
        ]
        return torch.cat(padded, dim=-2)
    return torch.cat(parts, dim=-2 if name.endswith(("hook_pattern", "hook_attn_scores")) else 1)
