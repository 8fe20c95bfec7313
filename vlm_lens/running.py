"""Running a `HookedVLM`: forward, whole or in part, with hooks and with a cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from transformer_lens.utilities import Slice

from vlm_lens.activations import Activations, cut_positions, moved, without_batch
from vlm_lens.cache import ActivationCache
from vlm_lens.generation import Generation
from vlm_lens.hooks.attention import AttentionTaps, remember_attention
from vlm_lens.hooks.heads import PATTERN_SITES
from vlm_lens.hooks.names import NamesFilter
from vlm_lens.inputs import Inputs
from vlm_lens.loss import next_token_loss
from vlm_lens.model_inputs import ModelInput
from vlm_lens.partial_runs import run_part
from vlm_lens.parts import given_by, text_for
from vlm_lens.run_rows import arguments_of, owners_of_run

ReturnType = Literal["logits", "loss", "both"]


class Running(Generation):
    """The part of `HookedVLM` that runs it."""

    _attention: dict[str, AttentionTaps]

    def forward(
        self,
        input: ModelInput | None = None,
        return_type: ReturnType | None = "logits",
        *,
        loss_per_token: bool = False,
        prepend_bos: bool | None = None,
        padding_side: Literal["left", "right"] | None = None,
        stop_at_layer: int | None = None,
        start_at_layer: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the model.

        Args:
            input: What `prepare` returns, raw text (no chat template), or tokens [batch, pos],
                whose padding at their ends is left out where no mask comes with them. For a vision
                tower alone, pixels [image, channel, height, width]. Or leave it
                out and pass the arguments of the Hugging Face forward by keyword, as in
                ``model(**processor(...))``.
            return_type: ``"logits"`` [batch, pos, d_vocab], ``"loss"`` (mean cross entropy of the
                next token, over the answer if `prepare` was given one, else over all text; of an
                encoder-decoder model over the answer, which it needs), ``"both"`` or None. With
                ``labels=``, the loss is Hugging Face's of these. A vision tower alone gives its
                classifier's logits [image, class], or what it hands on [image, patch, d_model].
            loss_per_token: One loss for each predicted position [batch, pos - 1] instead of the
                mean; 0 at positions that do not count.
            prepend_bos: For raw text, as in `to_tokens`.
            padding_side: For raw text, as in `to_tokens`.
            stop_at_layer: Return the residual stream [batch, pos, d_model] before this layer of
                the language model (of an encoder-decoder model, of the decoder), and run neither
                it nor what comes after it: 0 is the embedding, ``n_layers`` the stream after all
                layers; negative numbers count from the end.
            start_at_layer: `input` is the residual stream before this layer; run it and those
                after it. Where layers read more than the stream (the places of images in Qwen-VL,
                Gemma 3, PaliGemma and Mllama), pass the prompt's inputs too:
                ``model(stream, start_at_layer=2, **inputs)``. A stream does not say which of its
                positions are padding: of a padded batch, pass `attention_mask`, as
                `input_to_embed` returns it.
            **kwargs: Passed to the Hugging Face forward.

        Raises:
            TypeError: The input is none, or a keyword is known neither here nor there.
            ValueError: An argument has a value that makes no sense.

        Example:
            >>> from vlm_lens import HookedVLM
            >>> model = HookedVLM.from_pretrained("shapes-llava")
            >>> stream = model("what color", stop_at_layer=3)
            >>> bool((model(stream, start_at_layer=3) == model("what color")).all())
            True
        """
        self._refuse_unknown("forward", kwargs)
        if return_type not in ("logits", "loss", "both", None):
            raise ValueError(
                f"Expected return_type 'logits', 'loss', 'both' or None, got {return_type!r}."
            )
        kwargs.pop("return_dict", None)
        if stop_at_layer is None and start_at_layer is None:
            arguments = self._arguments(input, prepend_bos, kwargs, padding_side)
            with self._run():
                output = self.hf_model(**arguments)
        else:
            arguments, output = run_part(
                self,
                input,
                kwargs,
                prepend_bos=prepend_bos,
                padding_side=padding_side,
                start_at_layer=start_at_layer,
                stop_at_layer=stop_at_layer,
            )
            if stop_at_layer is not None:
                return output
        if return_type is None:
            return None
        if return_type == "logits":
            return given_by(output)
        loss = self._loss(output, arguments, input, per_token=loss_per_token)
        return loss if return_type == "loss" else (given_by(output), loss)

    def _loss(
        self, output: Any, arguments: Mapping[str, Any], given: Any, *, per_token: bool
    ) -> Tensor:
        """Hugging Face's loss where labels were given, else that of the next token."""
        if arguments.get("labels") is not None:
            if per_token:
                raise ValueError("labels give the mean loss alone: leave out loss_per_token=True.")
            return output.loss
        text_for(self, "a loss without labels=")
        if arguments.get("input_ids") is None:
            raise ValueError("Expected tokens to take the loss of: pass input_ids= or labels= too.")
        kept = arguments.get("logits_to_keep")
        if isinstance(kept, Tensor) or kept:
            raise ValueError(
                f"A loss needs the logits of every position, but logits_to_keep={kept!r} keeps "
                "some: leave it out."
            )
        return next_token_loss(output.logits, arguments, given, self.cfg, per_token=per_token)

    def input_to_embed(
        self,
        input: ModelInput | None = None,
        prepend_bos: bool | None = None,
        padding_side: Literal["left", "right"] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, None, Tensor | None]:
        """What enters the first layer, as in TransformerLens; `start_at_layer` takes it on.

        Args:
            input: As in `forward`.
            prepend_bos: For raw text, as in `to_tokens`.
            padding_side: For raw text, as in `to_tokens`.
            **kwargs: Passed to the Hugging Face forward.

        Returns:
            The residual stream [batch, pos, d_model] with images in place, the tokens
            [batch, pos], None (TransformerLens' positions of another kind) and the attention mask,
            None where nothing is padding.

        Example:
            >>> from vlm_lens import HookedVLM
            >>> model = HookedVLM.from_pretrained("shapes-llava")
            >>> stream, tokens, _, mask = model.input_to_embed("what color")
            >>> logits = model(stream, start_at_layer=0, attention_mask=mask)
            >>> bool((logits == model(tokens)).all())
            True
        """
        self._refuse_unknown("input_to_embed", kwargs)
        arguments = self._arguments(input, prepend_bos, kwargs, padding_side)
        stream = self.forward(**arguments, stop_at_layer=0)
        return stream, arguments.get("input_ids"), None, arguments.get("attention_mask")

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
        self._refuse_unknown("run_with_hooks", model_kwargs)
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
            names_filter: A name, a glob, a list of these or a predicate. None keeps everything; but
                attention scores and patterns are not kept, they are computed when asked for.
            device: Where kept activations go; by default they stay where they are.
            remove_batch_dim: Drop the batch dimension of a batch of one. Images, tiles and sounds
                keep their axis.
            incl_bwd: Also run backward on the output (use ``return_type="loss"``) and keep the
                gradients, under the names with ``_grad``. Scores and patterns are kept then, too.
            reset_hooks_end: Whether to remove the hooks at the end.
            clear_contexts: Whether to empty the hook points' `ctx` too.
            pos_slice: Keep only these positions of the language model's activations.
            dtype: What kept activations are converted to.
            return_cache_object: Return an `ActivationCache`; else a plain dictionary.
            **model_kwargs: As `forward`.

        Returns:
            What `forward` returns, and the cache.
        """
        self._refuse_unknown("run_with_cache", model_kwargs)
        if incl_bwd and model_kwargs.get("stop_at_layer") is not None:
            raise ValueError(
                "Expected incl_bwd or stop_at_layer, got both: backward starts at the loss, which "
                "a run that stops at a layer has not."
            )
        everything = names_filter is None
        # Without a filter nothing in particular was asked for, so silence is no surprise.
        asked = [] if everything else self._asked(names_filter)
        if everything and not incl_bwd:
            names_filter = [n for n in self.hook_dict if not n.endswith(PATTERN_SITES)]
        kept, fwd, bwd = self.get_caching_hooks(
            names_filter, incl_bwd, device, remove_batch_dim, None, pos_slice, dtype=dtype
        )
        positions = None if pos_slice is None else Slice.unwrap(pos_slice)
        deferred: dict[str, Callable[[], Tensor]] = {}
        with ExitStack() as stack:
            stack.enter_context(self._turns)
            if everything and not incl_bwd:
                deferred = stack.enter_context(remember_attention(self._attention))
            wanted = self._resolve(fwd, bwd)
            stack.enter_context(self._set_and_watch(wanted, asked, reset_hooks_end, clear_contexts))
            arguments = stack.enter_context(arguments_of(self.hf_model))
            output = self.forward(*model_args, **model_kwargs)
            if incl_bwd:
                output.backward()
            if not return_cache_object:
                return output, kept
            given = model_args[0] if model_args else model_kwargs.get("input")
            maps = given.token_map if isinstance(given, Inputs) else None
            owners = owners_of_run(
                self.hf_model, arguments, self.hook_dict, kept, maps, positions=positions
            )

        def when_asked(name: str, make: Callable[[], Tensor]) -> Tensor:
            value = cut_positions(name, make(), positions).to(dtype=dtype)
            return without_batch(name, value) if remove_batch_dim else value

        late = {name: partial(when_asked, name, make) for name, make in deferred.items()}
        return output, ActivationCache(
            Activations(kept, late if device is None else moved(late, device)),
            self,
            has_batch_dim=not remove_batch_dim,
            token_maps=maps if positions is None else None,
            owners=owners,
        )
