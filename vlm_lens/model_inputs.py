"""What goes into a `HookedVLM`: images and texts prepared for it, raw text, or tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vlm_lens.architectures import Architecture
from vlm_lens.geometry import fixed_layout
from vlm_lens.inputs import Inputs, prepare
from vlm_lens.lens_switches import LensSwitches
from vlm_lens.loss import media_positions

ModelInput = Inputs | Mapping[str, Tensor] | str | list[str] | Tensor


class ModelInputs(LensSwitches):
    """The part of `HookedVLM` that makes its inputs, and reads whatever it is given."""

    architecture: Architecture
    cfg: Any  # a HookedVLMConfig, of which TransformerLens' types make most sizes optional

    def prepare(
        self,
        *,
        text: str | list[Any],
        images: Any = None,
        answer: str | list[str] | None = None,
        audio: Any = None,
        chat_template: bool = True,
    ) -> Inputs:
        """Turn images and text into the model's inputs, with a map of what each position is.

        Args:
            text: A prompt or a list of prompts, with or without the image placeholder; without
                it, the model's chat template is applied. Chat messages work too.
            images: PIL images, paths, arrays or tensors: one, several for one prompt, or one
                entry (an image, a list, None) for each prompt.
            answer: An answer to append to each prompt, for teacher forcing.
            audio: For a model of sounds, those instead of images: arrays of samples.
            chat_template: Whether the chat template is applied; False leaves texts as they are.

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
            self.processor,
            self.hf_model.config,
            images=images,
            text=text,
            answer=answer,
            audio=audio,
            layout=self.architecture.layout or fixed_layout,
            chat_template=chat_template,
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
        if 0 < self.cfg.n_ctx < tokens.shape[1]:
            raise ValueError(
                f"Expected at most {self.cfg.n_ctx} positions, the model's context, but got "
                f"{tokens.shape[1]}. Shorten the text or use fewer images."
            )
        n_media = int(media_positions(arguments, self.cfg).sum())
        kind, name = ("image", "pixel_values")
        if self.cfg.audio_token_id is not None:
            kind, name = ("audio", "input_features")
        if n_media and arguments.get(name, arguments.get("image_embeds")) is None:
            raise ValueError(
                f"The tokens hold {n_media} {kind} positions but no {kind} came with them. "
                f"Pass what model.prepare(...) returns for text and {kind}, or {name}=..."
            )
