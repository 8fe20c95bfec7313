"""What goes into a `HookedVLM`: images and texts prepared for it, raw text, or tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

import torch
from jaxtyping import Int
from torch import Tensor, nn

from vlm_lens.architectures import Architecture
from vlm_lens.config import HookedVLMConfig
from vlm_lens.geometry import fixed_layout
from vlm_lens.inputs import Inputs, prepare
from vlm_lens.inputs.pictures import prepare_pictures
from vlm_lens.inputs.positions import positions_in_text
from vlm_lens.keywords import (
    keywords_of,
    knows_its_keywords,
    of_forward,
    of_generate,
    refuse_unknown,
)
from vlm_lens.lens_switches import LensSwitches
from vlm_lens.loss import media_positions

_MEDIA = {
    "image": ("pixel_values", "image_embeds"),
    "video": ("pixel_values_videos",),
    "audio": ("input_features",),
}
"""By the kind of a position, the arguments that can fill it."""

ModelInput = Inputs | Mapping[str, Any] | str | list[Any] | Tensor


class ModelInputs(LensSwitches):
    """The part of `HookedVLM` that makes its inputs, and reads whatever it is given."""

    architecture: Architecture
    cfg: Any  # a HookedVLMConfig, of which TransformerLens' types make most sizes optional

    @knows_its_keywords
    def prepare(
        self,
        *,
        text: str | list[Any] | None = None,
        images: Any = None,
        answer: str | list[str] | None = None,
        audio: Any = None,
        chat_template: bool = True,
    ) -> Inputs:
        """Turn images and text into the model's inputs, with a map of what each position is.

        Args:
            text: A prompt or a list of prompts, with or without the image placeholder; without
                it, the model's chat template is applied. Chat messages work too. Only a vision
                tower alone takes none.
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
        if self.text is None:
            given = {"text": text, "answer": answer, "audio": audio}
            for name in (name for name, value in given.items() if value is not None):
                raise TypeError(
                    f"Expected images alone, since {self.cfg.architecture} is a vision tower "
                    f"alone, which reads no text and no sounds: leave out {name}=."
                )
            config, layout = self.hf_model.config, self.architecture.layout or fixed_layout
            inputs = prepare_pictures(self.processor, config, images=images, layout=layout)
            return inputs.to(self.cfg.device)
        if text is None:
            raise TypeError("Expected a prompt: pass text=, with or without images=.")
        reads_text_alone = not self.architecture.media_parts()
        inputs = prepare(
            self.tokenizer if reads_text_alone else self.processor,
            self.hf_model.config,
            images=images,
            text=text,
            answer=answer,
            audio=audio,
            layout=self.architecture.layout or fixed_layout,
            chat_template=chat_template,
        )
        if self.architecture.counts_padding and not inputs.attention_mask.all():
            inputs = inputs.with_positions()
        return inputs.to(self.cfg.device)

    def _read_tokenizer(self) -> None:
        """Note in `cfg` what the tokenizer does, and what only the processor knows."""
        if self.processor is None or self.text is None:
            self.cfg.default_prepend_bos = False
            return
        self.cfg.default_prepend_bos = self._tokenizer_prepends_bos()
        video = getattr(self.processor, "video_token", None)
        if self.cfg.video_token_id is None and video in self.tokenizer.get_vocab():
            self.cfg.video_token_id = self.tokenizer.convert_tokens_to_ids(video)

    def _refuse_unknown(self, method: str, given: Iterable[str]) -> None:
        """Refuse keywords that neither a method of this model nor Hugging Face knows."""
        if {*given} <= {*keywords_of(type(self.hf_model).forward)}:  # nearly always
            return
        generates = method.startswith("generate")
        known = set(keywords_of(getattr(type(self), method)))
        known |= set() if generates else set(keywords_of(type(self).forward))
        theirs = (of_generate if generates else of_forward)(self.hf_model, self._text_parts)
        refuse_unknown(method, given, {*known, *theirs})

    @property
    def _text_parts(self) -> tuple[nn.Module, ...]:
        """The modules that the Hugging Face forward hands its further keywords to."""
        text = self.text
        return () if text is None else (text.head.module, text.place.module)

    def _arguments(
        self,
        given: ModelInput | None,
        prepend_bos: bool | None,
        kwargs: dict[str, Any],
        padding_side: str | None = None,
    ) -> dict[str, Any]:
        """Keyword arguments of the Hugging Face forward, checked, from all that a call was given.

        Raises:
            TypeError: There is no input, or there are two.
        """
        if self.text is None:
            return self._pixels(given, kwargs)
        if given is None:
            if kwargs.get("input_ids") is None and kwargs.get("inputs_embeds") is None:
                raise TypeError(
                    "Expected an input: what model.prepare() returns, text, tokens, or what a "
                    "processor returns as keywords, model(**processor(...))."
                )
            arguments = self._hf_inputs(kwargs, prepend_bos, padding_side)
        elif kwargs.get("input_ids") is not None:
            raise TypeError("Expected an input or input_ids, got both: leave one of them out.")
        else:
            arguments = {**self._hf_inputs(given, prepend_bos, padding_side), **kwargs}
            if not isinstance(given, Mapping):
                arguments = self._with_start(arguments)
        self._check(arguments)
        return arguments

    def _pixels(self, given: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Keyword arguments of a tower's forward, from what `prepare` returns or from pixels."""
        if isinstance(given, Inputs):
            given = dict(given.to(self.cfg.device))
        elif isinstance(given, Tensor) and given.is_floating_point():
            given = {"pixel_values": given}
        elif isinstance(given, Mapping):
            self._refuse_unknown("forward", given)
        elif given is not None:
            raise TypeError(
                f"Expected what model.prepare(images=...) returns, or pixels, since "
                f"{self.cfg.architecture} is a vision tower alone, got {given!r:.80}."
            )
        arguments = {**(given or {}), **kwargs}
        if arguments.get("pixel_values") is None:
            raise TypeError(
                "Expected an input: what model.prepare(images=...) returns, or pixel_values=."
            )
        return arguments

    def _hf_inputs(
        self, given: ModelInput, prepend_bos: bool | None, padding_side: str | None = None
    ) -> dict[str, Any]:
        """Whatever the user gave, as keyword arguments of the Hugging Face forward.

        Tokens that come without a mask get one where they are padded, and only there: without one,
        Hugging Face takes a shorter way to the same numbers.
        """
        if isinstance(given, list) and given and not isinstance(given[0], str):
            given = _as_tokens(given)
        if is_text(given):
            tokens, mask = self._tokenize(given, prepend_bos, padding_side, truncate=False)
            return self._with_mask({"input_ids": tokens}, mask)
        _refuse_of_text(prepend_bos, padding_side)
        if isinstance(given, Inputs):
            return dict(given.to(self.cfg.device))
        if isinstance(given, Mapping):
            self._refuse_unknown("forward", given)
            return self._with_mask(self._with_decoder_mask(dict(given)))
        if isinstance(given, Tensor) and not given.is_floating_point() and given.ndim in (1, 2):
            tokens = given[None] if given.ndim == 1 else given
            return self._with_mask({"input_ids": tokens.to(self.cfg.device)})
        got = f"{given.dtype} of shape {list(given.shape)}" if isinstance(given, Tensor) else given
        raise TypeError(
            "Expected what model.prepare() returns, text, a list of texts, or integer tokens of "
            f"shape [batch, pos], got {got!r}."
        )

    def _with_mask(self, arguments: dict[str, Any], mask: Tensor | None = None) -> dict[str, Any]:
        """Arguments without a mask of their own, with that of the padding that their tokens show.

        Args:
            arguments: Keyword arguments of the model's forward.
            mask: What is known of the padding.
        """
        tokens = arguments.get("input_ids")
        # What follows a key-value cache may start with anything.
        if tokens is None or {"attention_mask", "past_key_values"} & arguments.keys():
            return arguments
        _check_shape("input_ids", tokens)
        if mask is None:
            pad = self._pad_token()
            mask = torch.ones_like(tokens) if pad is None else pad.mask(tokens)
        found = {} if mask.all() else {"attention_mask": mask}
        if found and self.architecture.counts_padding:
            found["position_ids"] = positions_in_text(mask)
        if getattr(self.hf_model.config.get_text_config(), "use_bidirectional_attention", False):
            # PaliGemma reads a prompt both ways; but with a mask only where it is told so.
            found["token_type_ids"] = torch.zeros_like(tokens)
        return {**found, **arguments}

    def _with_decoder_mask(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments with a mask of the padding behind a decoder's tokens, if they have none.

        In front of them may be a start token that is the pad token, too, as in T5.
        """
        tokens = arguments.get("decoder_input_ids")
        if tokens is None or "decoder_attention_mask" in arguments:
            return arguments
        pad = self._pad_token()
        if pad is None:
            return arguments
        mask = pad.mask(tokens).flip(1).cummax(1).values.flip(1)
        return arguments if mask.all() else {**arguments, "decoder_attention_mask": mask}

    def _with_start(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Texts and tokens with the start token of a decoder, which reads them by its encoder."""
        theirs = {"decoder_input_ids", "decoder_inputs_embeds", "labels"}
        if self.text is None or not self.text.has_encoder or theirs & arguments.keys():
            return arguments
        tokens = arguments["input_ids"]
        start = self.hf_model.config.get_text_config().decoder_start_token_id
        return {**arguments, "decoder_input_ids": tokens.new_full((len(tokens), 1), start)}

    def _check(self, arguments: dict[str, Any]) -> None:
        """Refuse tokens that the model would run on without a word, but not as they are meant."""
        cfg = self.cfg
        for name in ("input_ids", "decoder_input_ids"):
            if arguments.get(name) is not None:
                _check_tokens(name, arguments, cfg)
        tokens = arguments.get("input_ids")
        if tokens is None or "past_key_values" in arguments:
            return
        if 0 < cfg.n_ctx < tokens.shape[1]:
            raise ValueError(
                f"Expected at most {cfg.n_ctx} positions, the model's context, but got "
                f"{tokens.shape[1]}. Shorten the text or use fewer images."
            )
        missing = [
            kind for kind, names in _MEDIA.items() if all(arguments.get(n) is None for n in names)
        ]
        for kind, places in media_positions(arguments, cfg, kinds=missing).items():
            if places.any():
                maker = "model.processor" if kind == "video" else "model.prepare"
                raise ValueError(
                    f"The tokens hold {int(places.sum())} {kind} positions but no {kind} came with "
                    f"them. Pass what {maker}(...) returns for text and {kind}, or "
                    f"{_MEDIA[kind][0]}=..."
                )


def is_text(given: Any) -> TypeGuard[str | list[str]]:
    """Whether a model's input is raw text, or a list of texts.

    Example:
        >>> is_text(["what color"]), is_text([1, 5, 7])
        (True, False)
    """
    return isinstance(given, str) or (
        isinstance(given, list) and bool(given) and isinstance(given[0], str)
    )


def _check_tokens(name: str, arguments: dict[str, Any], cfg: HookedVLMConfig) -> None:
    """Refuse tokens that the model has no embedding for, and none at all."""
    tokens = arguments[name]
    _check_shape(name, tokens)
    if tokens.numel() == 0:
        raise ValueError(f"Expected at least one token in {name}, got {list(tokens.shape)}.")
    low, high = (int(end) for end in tokens.aminmax())
    if low >= 0 and high < cfg.d_vocab:
        return
    outside = (tokens < 0) | (tokens >= cfg.d_vocab)
    # Some families have no embedding for what stands for an image.
    media = media_positions(arguments, cfg) if name == "input_ids" else {}
    for places in media.values():
        outside &= ~places
    wrong = tokens[outside].unique().tolist()
    if wrong:
        raise ValueError(
            f"Expected token ids from 0 to {cfg.d_vocab - 1} in {name}, got {wrong[:5]}: they come "
            "from another tokenizer, or the embedding was not resized."
        )


def _check_shape(name: str, tokens: Any) -> None:
    if isinstance(tokens, Tensor) and tokens.ndim == 2:
        return
    got = f"shape {list(tokens.shape)}" if isinstance(tokens, Tensor) else repr(tokens)
    raise TypeError(
        f"Expected {name} to be a tensor of shape [batch, pos], got {got:.80}. Where a processor "
        'made it, the processor has to be called with return_tensors="pt".'
    )


def _refuse_of_text(prepend_bos: bool | None, padding_side: str | None) -> None:
    """Refuse what says how texts become tokens where there are tokens already.

    That nothing is put in front of them is true anyway.
    """
    given = {"prepend_bos": prepend_bos or None, "padding_side": padding_side}
    for name, value in given.items():
        if value is not None:
            raise TypeError(
                f"Expected raw text with {name}={value!r}, which says how texts become tokens, got "
                f"tokens or what prepare made: leave it out, or pass model.to_tokens(..., {name}="
                f"{value!r})."
            )


def _as_tokens(rows: list[Any]) -> Int[Tensor, ...]:
    """Token ids that came as a list, or as a list of lists of one length."""
    try:
        return torch.tensor(rows)
    except (TypeError, ValueError) as error:
        raise TypeError(
            "Expected token ids as a list of integers, or of lists of one length, got "
            f"{str(rows)[:80]}: {error}."
        ) from error
