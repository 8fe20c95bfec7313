"""Generation with hooks at every step, and generation that keeps activations of every step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vlm_lens.cache import ActivationCache
from vlm_lens.hooked_root import TapRoot
from vlm_lens.hooks import resolve_names
from vlm_lens.hooks.names import NamesFilter
from vlm_lens.inputs import Inputs, TokenMap
from vlm_lens.inputs.batch import token_strings


class Generation(TapRoot):
    """The part of `HookedVLM` that generates: Hugging Face's `generate`, KV cache on."""

    hf_model: Any
    cfg: Any
    tokenizer: Any

    def generate(
        self,
        input: Inputs | str | Mapping[str, Tensor] | Tensor,
        *,
        max_new_tokens: int = 20,
        return_type: Literal["str", "tokens"] = "str",
        **kwargs: Any,
    ) -> Any:
        """Generate an answer; hooks fire at every step.

        The first step holds the whole prompt, [batch, pos, ...]; each later step holds the one new
        position, [batch, 1, ...]. The vision encoder and the projector run in the first step only.

        Args:
            input: What `prepare` returns, raw text, or tokens.
            max_new_tokens: At most so many new tokens.
            return_type: ``"str"``: only the new text, without special tokens (a list of them for
                a batch); ``"tokens"``: prompt and new tokens [batch, pos].
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
        tokens = self.hf_model.generate(**arguments, max_new_tokens=max_new_tokens, **kwargs)
        if return_type == "tokens":
            return tokens
        answers = self._new_text(tokens, arguments["input_ids"].shape[1])
        batched = input.batched if isinstance(input, Inputs) else len(answers) > 1
        return answers if batched else answers[0]

    def _generation_inputs(self, given: Any, max_new_tokens: int) -> dict[str, Any]:
        if max_new_tokens < 1:
            raise ValueError(f"Expected max_new_tokens of at least 1, got {max_new_tokens}.")
        arguments = self._hf_inputs(given, None)  # type: ignore[attr-defined]
        self._check(arguments)  # type: ignore[attr-defined]
        self._n_runs += 1
        if "attention_mask" not in arguments:
            arguments["attention_mask"] = torch.ones_like(arguments["input_ids"])
        return arguments

    def _new_text(self, tokens: Int[Tensor, "batch pos"], n_prompt: int) -> list[str]:
        new = tokens[:, n_prompt:]
        return [text.strip() for text in self.tokenizer.batch_decode(new, skip_special_tokens=True)]

    def generate_with_cache(
        self,
        input: Inputs | str | Mapping[str, Tensor] | Tensor,
        *,
        names_filter: NamesFilter,
        max_new_tokens: int = 20,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> tuple[Int[Tensor, "batch pos"], ActivationCache]:
        """Generate, and keep the activations of every position, prompt and answer alike.

        What is kept equals a teacher-forced run over the returned tokens: the last token, which
        `generate` itself never reads, is run too.

        Args:
            input: What `prepare` returns, raw text, or tokens.
            names_filter: Which activations to keep, as in `run_with_cache`; it must be given.
            max_new_tokens: At most so many new tokens.
            device: Where kept activations go.
            dtype: What they are converted to.
            **kwargs: Passed to Hugging Face's `generate`; not beam search.

        Returns:
            Prompt and new tokens [batch, pos], and the cache over all these positions.
        """
        if kwargs.get("num_beams", 1) > 1 or kwargs.get("num_return_sequences", 1) > 1:
            raise ValueError(
                "generate_with_cache follows one sequence for each prompt: num_beams and "
                "num_return_sequences must be 1."
            )
        if names_filter is None:
            raise ValueError(
                "Expected names_filter to say what to keep, e.g. 'blocks.*.hook_resid_post'."
            )
        names = resolve_names(names_filter, self.hook_dict)
        steps: dict[str, list[Tensor]] = {name: [] for name in names}

        def keep(tensor: Tensor, hook: HookPoint) -> None:
            steps[str(hook.name)].append(tensor.detach().to(device=device, dtype=dtype))

        arguments = self._generation_inputs(input, max_new_tokens)
        with self.hooks([(names, keep)]):
            out = self.hf_model.generate(
                **arguments,
                max_new_tokens=max_new_tokens,
                use_cache=True,
                return_dict_in_generate=True,
                **kwargs,
            )
            self._read_last_token(out, arguments["attention_mask"])
        kept = {name: _joined(name, parts) for name, parts in steps.items() if parts}
        maps = self._extended_maps(input, out.sequences) if isinstance(input, Inputs) else None
        return out.sequences, ActivationCache(kept, self, token_maps=maps)

    def _extended_maps(self, inputs: Inputs, tokens: Int[Tensor, "batch pos"]) -> list[TokenMap]:
        new = tokens[:, inputs.shape[1] :].tolist()
        return [
            token_map.extend(token_strings(self.tokenizer, answer))
            for token_map, answer in zip(inputs.token_map, new, strict=True)
        ]

    @torch.no_grad()
    def _read_last_token(self, out: Any, prompt_mask: Int[Tensor, "batch prompt"]) -> None:
        """Run the token that `generate` produced last, after everything before it."""
        tokens = out.sequences
        new = tokens.shape[1] - prompt_mask.shape[1]
        mask = torch.cat([prompt_mask, prompt_mask.new_ones(len(tokens), new)], dim=1)
        self.hf_model(
            input_ids=tokens[:, -1:],
            attention_mask=mask,
            position_ids=mask.sum(-1, keepdim=True) - 1,
            past_key_values=out.past_key_values,
            use_cache=True,
        )


def _joined(name: str, parts: list[Tensor]) -> Tensor:
    """One activation from its steps: the prompt's positions, then one position a step."""
    if len(parts) == 1:  # the vision encoder and the projector run once
        return parts[0]
    if name.endswith("hook_rot_k"):  # each step holds the keys of all positions so far
        return parts[-1]
    if name.endswith(("hook_pattern", "hook_attn_scores")):
        masked = 0.0 if name.endswith("hook_pattern") else torch.finfo(parts[0].dtype).min
        n_keys = parts[-1].shape[-1]
        padded = [
            torch.nn.functional.pad(part, (0, n_keys - part.shape[-1]), value=masked)
            for part in parts
        ]
        return torch.cat(padded, dim=-2)
    return torch.cat(parts, dim=1)
