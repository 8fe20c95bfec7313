"""Turn images, sounds and texts into the inputs of a model."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vlm_lens.geometry import LayoutFunction
from vlm_lens.geometry.fixed import n_class_tokens
from vlm_lens.inputs.batch import Inputs
from vlm_lens.inputs.encode import (
    EncodedSample,
    answer_type,
    check_length,
    collate,
    encode,
    token_maps,
)
from vlm_lens.inputs.images import load_image
from vlm_lens.inputs.media import Medium, is_tokenizer, medium_of, tokenizer_of
from vlm_lens.inputs.messages import media_in
from vlm_lens.inputs.prompts import Prompt, check_messages, render_prompt
from vlm_lens.inputs.samples import Images, RawSample, split_samples
from vlm_lens.inputs.sounds import Sounds, load_sound
from vlm_lens.inputs.words import check_text, warn_of_unknown_words

# CLIP's processors resize the short edge first and crop then: an image of 10000 x 1 pixels would
# take gigabytes in between.
_MAX_RESIZED_PIXELS = 100_000_000


def prepare(
    processor: Any,
    config: Any,
    *,
    images: Images | Sequence[Images] = None,
    text: Prompt | Sequence[Prompt],
    answer: str | Sequence[str] | None = None,
    audio: Sounds | Sequence[Sounds] = None,
    layout: LayoutFunction,
    chat_template: bool = True,
) -> Inputs:
    """Prepares images and texts for a model, and maps its positions to the images' pixels.

    Args:
        processor: The model's processor, or the tokenizer of a language model alone. Neither it nor
            its tokenizer is changed.
        config: The model's config.
        images: For one text: None, an image or a list of images. For a list of texts: None or a
            list with one such entry per text. See `load_image` for what an image can be.
        text: A text or chat messages (dicts with "role" and "content"), or a list of these.
            A text that holds the processor's image token, or without images another special token,
            is used as it is; any other one goes through the chat template, images first. Without a
            template, the placeholders and a newline are put in front. Messages may hold their
            images, as in Hugging Face: ``{"type": "image", "image": picture}``, or ``"path"``,
            ``"url"`` (of a file) or ``"base64"``.
        answer: A text per prompt to put behind it, for teacher forcing. It is tokenized by itself,
            so that the prompt's tokens are the same with and without it.
        audio: For a model of sounds, those instead of images: arrays of samples at the sampling
            rate of the processor's feature extractor.
        layout: Says what becomes of an image or a sound in this family of models, e.g.
            `vlm_lens.geometry.fixed_layout`.
        chat_template: Whether texts go through the chat template, if there is one.

    Returns:
        The inputs, on the CPU, padded on the left.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: The processor does not fit the model, the numbers of texts, answers, images and
            placeholders do not fit each other, a text is empty, or a prompt is longer than the
            model's context.
        OSError: An image file does not exist; see `load_image`.

    Example:
        >>> from PIL import Image
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import CLIPImageProcessorPil, CLIPVisionConfig
        >>> from transformers import PreTrainedTokenizerFast
        >>> words = ["<pad>", "<image>", "what", "color", "?"]
        >>> vocabulary = {word: i for i, word in enumerate(words)}
        >>> backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
        >>> backend.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> from transformers import LlavaConfig, LlavaProcessor
        >>> from vlm_lens.geometry import fixed_layout
        >>> processor = LlavaProcessor(
        ...     image_processor=CLIPImageProcessorPil(),
        ...     tokenizer=PreTrainedTokenizerFast(
        ...         tokenizer_object=backend,
        ...         pad_token="<pad>",
        ...         extra_special_tokens={"image_token": "<image>"},
        ...     ),
        ...     patch_size=32,
        ...     vision_feature_select_strategy="default",
        ...     num_additional_image_tokens=1,
        ... )
        >>> config = LlavaConfig(image_token_id=1, vision_config=CLIPVisionConfig())
        >>> picture = Image.new("RGB", (640, 480))
        >>> inputs = prepare(
        ...     processor, config, images=picture, text="what color ?", layout=fixed_layout
        ... )
        >>> inputs
        Inputs(1 sample of 52 positions, 1 image: input_ids [1, 52], attention_mask [1, 52], \
pixel_values [1, 3, 224, 224], on cpu)
        >>> inputs.token_map
        [TokenMap(52 positions: 49 image (7x7), 3 text)]
        >>> inputs.token_map[0].positions("text")
        [49, 50, 51]
    """
    medium = medium_of(processor, config)
    check_processor(processor, config)
    given = {"image": images, "audio": audio}
    sources = given.pop(medium.name, None)
    if any(other is not None for other in given.values()):
        reader = "this model" if is_tokenizer(processor) else type(processor).__name__
        raise TypeError(f"{reader} {medium.is_taken}: {_REMEDY[medium.name]}")
    raw, batched = split_samples(sources, text, answer, placeholder=medium.token)
    raw = [_with_media_of_messages(entry, medium, index=i) for i, entry in enumerate(raw)]
    encode_one = partial(_encode, processor, config, medium=medium, layout=layout)
    rows = [encode_one(entry, index=i, chat_template=chat_template) for i, entry in enumerate(raw)]
    samples = [sample for sample, _, _ in rows]
    written = [
        (s.ids, f"{text} {r.answer or ''}") for (s, _, text), r in zip(rows, raw, strict=True)
    ]
    tokenizer = tokenizer_of(processor)
    warn_of_unknown_words(tokenizer, written)
    pictures = [media for _, media, _ in rows] if medium.name == "image" else [[] for _ in rows]
    return Inputs(
        tensors={**collate(samples, processor), **_decoder_inputs(raw, processor, config)},
        token_map=token_maps(samples, processor, medium),
        images=pictures,
        texts=[text for _, _, text in rows],
        batched=batched,
        tokenizer=tokenizer,
        image_token_id=medium.token_id,
        answer_type=answer_type(processor),
    )


_REMEDY = {
    "image": "pass images=",
    "audio": "pass audio=",
    "nothing": "leave images and sounds out, or load a vision-language model",
}


def _with_media_of_messages(raw: RawSample, medium: Medium, *, index: int) -> RawSample:
    """The sample with the images or sounds that its chat messages hold."""
    if isinstance(raw.prompt, str):
        return raw
    check_messages(raw.prompt, index)
    held = media_in(raw.prompt, medium, sample=index)
    if held and raw.sources:
        raise ValueError(
            f"sample {index}: expected {medium.name}s inside of the messages or apart from them, "
            f"got {len(held)} inside and {len(raw.sources)} apart"
        )
    return replace(raw, sources=held or raw.sources)


def _encode(
    processor: Any,
    config: Any,
    raw: RawSample,
    *,
    medium: Medium,
    layout: LayoutFunction,
    index: int,
    chat_template: bool,
) -> tuple[EncodedSample, list[Any], str]:
    """One sample with its images or sounds and its prompt."""
    n_media = len(raw.sources)
    text = render_prompt(
        processor,
        raw.prompt,
        medium=medium,
        n_media=n_media,
        sample=index,
        chat_template=chat_template,
    )
    load = load_image if medium.name == "image" else load_sound
    media = [_load(load, source, medium.name, i, index) for i, source in enumerate(raw.sources)]
    if medium.name == "image":
        layouts = [layout(processor, config, m.size, n_images=n_media) for m in media]
        _check_resized_size(layouts)
    else:
        layouts = [layout(processor, config, len(m)) for m in media]
    check_text(raw.answer or "", what=f"sample {index}: the answer")
    answer = None if _is_encoder_decoder(config) else raw.answer
    sample = encode(processor, text, answer, media, layouts, medium=medium, index=index)
    check_length(sample, config, medium, index=index)
    return sample, media, text


def check_processor(processor: Any, config: Any) -> None:
    """Checks that a processor makes what a model expects.

    Raises:
        ValueError: Its settings differ from the model's config.
    """
    vision_config = getattr(config, "vision_config", None)
    settings = {
        "patch_size": getattr(vision_config, "patch_size", None),
        "vision_feature_select_strategy": getattr(config, "vision_feature_select_strategy", None),
        "image_token_id": getattr(config, "image_token_id", None),
    }
    for name, expected in settings.items():
        made = _made(processor, name)
        if expected is not None and made and expected not in made:
            raise ValueError(
                f"the processor's {name} is {made[0]!r}, but the model's is {expected!r}: use the "
                f"model's own processor, or set processor.{name}"
            )
    if hasattr(processor, "num_additional_image_tokens") and n_class_tokens(processor) < 0:
        raise ValueError(
            "the processor drops a class token (vision_feature_select_strategy='default') that it "
            "does not count: set processor.num_additional_image_tokens=1"
        )


def _made(processor: Any, name: str) -> list[Any]:
    """What a processor has for a setting of the model; nothing where it has no such setting."""
    if name == "image_token_id" and hasattr(processor, "image_token_id"):
        # Some families write another token than the prompt's placeholder where the image goes.
        return list(processor.image_token_ids)
    return [getattr(processor, name)] if hasattr(processor, name) else []


def _load(load: Callable[[Any], Any], source: object, name: str, index: int, sample: int) -> Any:
    try:
        return load(source)
    except (OSError, TypeError, ValueError) as error:
        error.add_note(f"This is {name} {index} of sample {sample}.")
        raise


def _check_resized_size(layouts: list[Any]) -> None:
    for view in (view for layout in layouts for view in layout.views):
        width, height = view.transform.resized_size
        if math.prod((width, height)) > _MAX_RESIZED_PIXELS:
            original = "x".join(map(str, view.transform.original_size))
            raise ValueError(
                f"an image of {original} pixels is too long and narrow: the image processor would "
                f"enlarge it to {width}x{height} before cropping it: crop it"
            )


def _is_encoder_decoder(config: Any) -> bool:
    return bool(config.get_text_config().is_encoder_decoder)


def _decoder_inputs(raw: list[RawSample], processor: Any, config: Any) -> dict[str, Tensor]:
    """What the decoder of an encoder-decoder model starts with: its start token, and answers."""
    if not _is_encoder_decoder(config):
        return {}
    tokenizer, text_config = tokenizer_of(processor), config.get_text_config()
    answers = [
        tokenizer(entry.answer, add_special_tokens=False)["input_ids"] if entry.answer else []
        for entry in raw
    ]
    warn_of_unknown_words(tokenizer, zip(answers, [e.answer or "" for e in raw], strict=True))
    longest = max(map(len, answers))
    start, pad = text_config.decoder_start_token_id, text_config.pad_token_id
    ids = [[pad] * (longest - len(answer)) + [start, *answer] for answer in answers]
    mask = [[0] * (longest - len(answer)) + [1] * (len(answer) + 1) for answer in answers]
    tensors = {"decoder_input_ids": torch.tensor(ids)}
    if len(set(map(len, answers))) > 1:
        tensors["decoder_attention_mask"] = torch.tensor(mask)
    return tensors
