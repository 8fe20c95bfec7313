"""Generation with hooks at every step, and generation that keeps activations of every step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformers import GenerationConfig

from vlm_lens.cache import ActivationCache
from vlm_lens.generation_options import (
    ONE_STEP_A_TOKEN,
    check_one_step_a_token,
    check_streamed,
    hf_options,
)
from vlm_lens.generation_steps import check_positions, followed, joined
from vlm_lens.generation_stream import as_text, in_chunks, one_token_a_step
from vlm_lens.hooks import resolve_names
from vlm_lens.hooks.names import NamesFilter
from vlm_lens.hooks.step import Step
from vlm_lens.inputs import Inputs, TokenMap
from vlm_lens.inputs.batch import token_strings
from vlm_lens.inputs.positions import ends_of, is_answer
from vlm_lens.keywords import of_forward
from vlm_lens.model_inputs import ModelInput, ModelInputs, is_text
from vlm_lens.parts import text_for
from vlm_lens.run_rows import owners_of_run

ReturnType = Literal["str", "tokens", "input"]
GenerationInput = ModelInput | None


class Generation(ModelInputs):
    """The part of `HookedVLM` that generates: Hugging Face's `generate`, KV cache on."""

    _step: Step | None

    def generate(
        self,
        input: GenerationInput = None,
        max_new_tokens: int | None = None,
        *,
        return_type: ReturnType = "str",
        stop_at_eos: bool = True,
        use_past_kv_cache: bool | None = None,
        prepend_bos: bool | None = None,
        verbose: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Generate an answer; hooks fire at every step.

        The first step holds the whole prompt, [batch, pos, ...]; each later step holds the one new
        position, [batch, 1, ...]. Encoders, Q-Former and projector run in the first step only. An
        encoder-decoder model reads the prompt in its encoder, once, and its decoder starts with the
        start token: `decoder_input_ids` among the inputs are what a forward reads, and not used.

        Args:
            input: What `prepare` returns, raw text, or tokens. Or leave it out and pass what a
                processor returns by keyword, as in ``model.generate(**processor(...))``.
            max_new_tokens: At most so many new tokens; 20, unless a `generation_config` or a
                `max_length` says another number.
            return_type: ``"str"``: only the new text, without special tokens: one text for one
                sequence, else a list of all, those of the first prompt first; ``"tokens"``:
                prompt and new tokens [batch, pos], of an encoder-decoder model the start token and
                new tokens; ``"input"``: prompt and answer in what came in, text or tokens.
            stop_at_eos: Whether a sequence ends with the eos token.
            use_past_kv_cache: TransformerLens' name for `use_cache`.
            prepend_bos: For raw text, as in `to_tokens`.
            verbose: Whether a bar shows the progress.
            **kwargs: Passed to Hugging Face's `generate` (`do_sample`, `temperature`, `num_beams`,
                `num_return_sequences` ...). Where they ask for more than tokens
                (`return_dict_in_generate`, `output_scores`, `output_logits` ...), Hugging Face's
                object is returned, whatever the `return_type`.

        Raises:
            TypeError: The input is none, or a keyword is known neither here nor there.
            ValueError: An option has a value that makes no sense.

        Example:
            >>> from vlm_lens import HookedVLM
            >>> from PIL import Image
            >>> model = HookedVLM.from_pretrained("shapes-llava")
            >>> blank = Image.new("RGB", (64, 64))
            >>> inputs = model.prepare(images=blank, text="is there a red circle ?")
            >>> model.generate(inputs)
            'no'
        """
        self._refuse_unknown("generate", kwargs)
        _check_return_type(return_type)
        arguments, options = self._generation_inputs(
            input,
            prepend_bos,
            kwargs,
            max_new_tokens=max_new_tokens,
            stop_at_eos=stop_at_eos,
            use_past_kv_cache=use_past_kv_cache,
            verbose=verbose,
        )
        out = self._hf_generate(arguments, options)
        if not isinstance(out, Tensor) or not _is_text(input, return_type):
            return out
        prompt = 0 if return_type == "input" else self._prompt_length(arguments)
        answers = self._text(out[:, prompt:])
        batched = input.batched if isinstance(input, Inputs) else False
        return answers if batched or len(answers) > 1 else answers[0]

    def generate_stream(
        self,
        input: GenerationInput = None,
        max_new_tokens: int | None = None,
        max_tokens_per_yield: int = 25,
        *,
        return_type: ReturnType = "str",
        stop_at_eos: bool = True,
        use_past_kv_cache: bool | None = None,
        prepend_bos: bool | None = None,
        **kwargs: Any,
    ) -> Iterator[Any]:
        """Generate, and hand out the answer piece by piece while it is made.

        Hooks that are set while a piece is asked for fire in it.

        Args:
            input: As in `generate`.
            max_new_tokens: As in `generate`.
            max_tokens_per_yield: How many new tokens a piece has.
            return_type: As in `generate`; the first piece of tokens, or of text with ``"input"``,
                starts with the prompt. All pieces together are what `generate` returns.
            stop_at_eos: As in `generate`; `use_past_kv_cache` and `prepend_bos` too.
            use_past_kv_cache: TransformerLens' name for `use_cache`.
            prepend_bos: For raw text.
            **kwargs: Passed to Hugging Face's `generate`. There are no beams, since they are known
                at the end only; those that the model's own configuration asks for are left out.

        Raises:
            TypeError, ValueError: As `generate`; at once, not with the first piece.

        Example:
            >>> from vlm_lens import HookedVLM
            >>> model = HookedVLM.from_pretrained("shapes-llava")
            >>> pieces = model.generate_stream("what color", 4, 2)
            >>> "".join(pieces) == model.generate("what color", 4)
            True
        """
        self._refuse_unknown("generate_stream", kwargs)
        _check_return_type(return_type)
        if max_tokens_per_yield < 1:
            raise ValueError(
                f"Expected max_tokens_per_yield of at least 1, got {max_tokens_per_yield}."
            )
        check_streamed(kwargs)
        arguments, options = self._generation_inputs(
            input,
            prepend_bos,
            kwargs,
            max_new_tokens=max_new_tokens,
            stop_at_eos=stop_at_eos,
            use_past_kv_cache=use_past_kv_cache,
            verbose=False,
        )
        options |= {"num_beams": 1, "custom_generate": one_token_a_step}
        steps = self._told(self._hf_generate(arguments, options), arguments, options)
        started = self._before_the_answer(arguments, options)
        pieces = in_chunks(started, steps, max_tokens_per_yield)
        if not _is_text(input, return_type):
            return pieces
        skipped = 0 if return_type == "input" else started.shape[1]
        texts = as_text(self.tokenizer, pieces, skipped)
        batched = input.batched if isinstance(input, Inputs) else len(started) > 1
        return texts if batched else (text for [text] in texts)

    def _hf_generate(self, arguments: dict[str, Any], options: dict[str, Any]) -> Any:
        """Hugging Face's `generate`; hooks know which positions each step is of."""
        # With a static cache transformers compiles the forward on a GPU, without hooks set since.
        if any(tap.has_hooks() for tap in self.hook_dict.values()):
            options = {"disable_compile": True, **options}
        with self._run(generates=True), self._generating(arguments, options):
            return self.hf_model.generate(**arguments, **options)

    def _generating(
        self, arguments: Mapping[str, Any], options: Mapping[str, Any]
    ) -> AbstractContextManager[None]:
        """The block in which hooks are told of the prompt that is generated from."""
        head = text_for(self, "generate").head.module
        asked = options.get("generation_config") or head.generation_config
        chunk, guidance = (
            options.get(name, getattr(asked, name, None))
            for name in ("prefill_chunk_size", "guidance_scale")
        )
        assert self._step is not None  # there is a language model
        return self._step.generating(
            self._prompt_length(arguments),
            chunked=chunk is not None,
            guided=guidance not in (None, 1, 1.0),
        )

    def _told(
        self, steps: Iterator[Tensor], arguments: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Iterator[Tensor]:
        """The same steps, of which each one tells hooks what `_hf_generate` does."""
        while True:
            with self._run(generates=True), self._generating(arguments, options):
                token = next(steps, None)
            if token is None:
                return
            yield token

    def _generation_inputs(
        self,
        given: GenerationInput,
        prepend_bos: bool | None,
        kwargs: Mapping[str, Any],
        **ours: Any,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the model reads, and Hugging Face's options of how to generate."""
        text_for(self, "generate")
        read = set(of_forward(self.hf_model, self._text_parts)) - vars(GenerationConfig()).keys()
        options = hf_options(
            {name: value for name, value in kwargs.items() if name not in read},
            tokenizer=None if self.processor is None else self.tokenizer,
            **ours,
        )
        passed = {name: value for name, value in kwargs.items() if name in read}
        side = "left" if is_text(given) else None  # nothing comes between prompts and answers
        arguments = self._arguments(given, prepend_bos, passed, side)
        if not {"input_ids", "inputs_embeds"} & arguments.keys():
            raise ValueError(f"Expected input_ids to generate from, got {sorted(arguments)}.")
        for name in ("decoder_input_ids", "decoder_attention_mask"):
            if name not in passed:
                arguments.pop(name, None)
        return self._as_generate_masks(given, passed, arguments), options

    def _as_generate_masks(
        self, given: Any, passed: Mapping[str, Any], arguments: dict[str, Any]
    ) -> dict[str, Any]:
        """Texts with their own mask; of bare tokens, all that is a pad token left out.

        Without a mask, Hugging Face's `generate` looks for pad tokens itself, anywhere. It does not
        where the pad token means something else too, or its settings name none: then the padding
        at the tokens' ends is left out.
        """
        tokens, mask = arguments.get("input_ids"), arguments.get("attention_mask")
        if tokens is None:
            return arguments
        told = "attention_mask" in {*passed, *(given if isinstance(given, Mapping) else ())}
        if is_text(given):
            mask = torch.ones_like(tokens) if mask is None else mask
        elif mask is not None and not told:
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
        if self.cfg.is_encoder_decoder:
            started = arguments.get("decoder_input_ids")
            return 1 if started is None else started.shape[1]
        return arguments["input_ids"].shape[1] if "input_ids" in arguments else 0

    def _before_the_answer(
        self, arguments: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Int[Tensor, "batch pos"]:
        """The tokens that each returned sequence starts with."""
        if self.cfg.is_encoder_decoder:
            start = self.hf_model.config.get_text_config().decoder_start_token_id
            ids = arguments.get("decoder_input_ids")
            ids = torch.full((len(arguments["input_ids"]), 1), start) if ids is None else ids
        else:
            ids = arguments["input_ids"]
        return ids.to(self.cfg.device).repeat_interleave(
            options.get("num_return_sequences") or 1, 0
        )

    def _text(self, tokens: Int[Tensor, "batch pos"]) -> list[str]:
        decoded = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [text.strip() for text in decoded]

    def generate_with_cache(
        self,
        input: GenerationInput = None,
        max_new_tokens: int | None = None,
        *,
        names_filter: NamesFilter,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        stop_at_eos: bool = True,
        prepend_bos: bool | None = None,
        verbose: bool = False,
        **kwargs: Any,
    ) -> tuple[Any, ActivationCache]:
        """Generate, and keep the activations of every position, prompt and answer alike.

        What is kept equals a teacher-forced run over the returned tokens: the last token, which
        `generate` itself never reads, is run too. Of an encoder-decoder model, ``encoder.`` holds
        the prompt and ``decoder.`` the start token and the new ones.

        Args:
            input: As in `generate`.
            max_new_tokens: As in `generate`.
            names_filter: Which activations to keep, as in `run_with_cache`; it must be given.
            device: Where kept activations go.
            dtype: What they are converted to.
            stop_at_eos: As in `generate`; `prepend_bos` and `verbose` too.
            prepend_bos: For raw text.
            verbose: Whether a bar shows the progress.
            **kwargs: Passed to Hugging Face's `generate`. There is no beam search, even where the
                model's own generation configuration asks for it.

        Returns:
            Tokens [batch, pos] as `generate` returns them, or Hugging Face's object where the
            options ask for it, and the cache over all these positions.

        Raises:
            TypeError: The input is none, or a keyword is known neither here nor there.
            ValueError: The options ask for more than one sequence, or one step of the model for
                each new token is not how they generate (a second model, guidance, a static cache);
                or the prompts are padded and the model is Kosmos-2.
        """
        self._refuse_unknown("generate_with_cache", kwargs)
        check_one_step_a_token(kwargs)
        if names_filter is None:
            raise ValueError(
                "Expected names_filter to say what to keep, e.g. 'blocks.*.hook_resid_post'."
            )
        names = resolve_names(names_filter, self.hook_dict)
        steps: dict[str, list[Tensor]] = {name: [] for name in names}

        def keep(tensor: Tensor, hook: HookPoint) -> None:
            steps[str(hook.name)].append(tensor.detach().to(device=device, dtype=dtype))

        arguments, options = self._generation_inputs(
            input,
            prepend_bos,
            kwargs,
            max_new_tokens=max_new_tokens,
            stop_at_eos=stop_at_eos,
            use_past_kv_cache=None,
            verbose=verbose,
        )
        maps = input.token_map if isinstance(input, Inputs) else None
        check_positions(self.cfg.architecture, arguments.get("attention_mask"))
        with self.hooks([(names_filter, keep)]), followed(self.hf_model) as loop:
            out = self._hf_generate(arguments, {**options, **ONE_STEP_A_TOKEN})
            n_new = out.sequences.shape[1] - self._prompt_length(arguments)
            if loop.n_steps == n_new:  # on Apple's GPUs, transformers may have read it already
                loop.read_last(out.sequences)
            owners = owners_of_run(
                self.hf_model,
                {**arguments, **self._generated(arguments, out.sequences, options)},
                self.hook_dict,
                [name for name, parts in steps.items() if parts],
                maps,
            )
        kept = {name: joined(name, parts, n_new) for name, parts in steps.items() if parts}
        maps = self._extended_maps(input, out.sequences) if isinstance(input, Inputs) else None
        asked = options.get("return_dict_in_generate")
        cache = ActivationCache(kept, self, token_maps=maps, owners=owners)
        return out if asked else out.sequences, cache

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


def _is_text(given: Any, return_type: ReturnType) -> bool:
    """Whether a text is to be returned; with the prompt, if a text or a prepared one came in."""
    if return_type == "input":
        return isinstance(given, Inputs) or is_text(given)
    return return_type == "str"


def _check_return_type(return_type: str) -> None:
    if return_type not in ("str", "tokens", "input"):
        raise ValueError(
            f"Expected return_type 'str', 'tokens' or 'input' (with the prompt), got "
            f"{return_type!r}."
        )
