"""Run a processor on one sample, and put samples together as a batch with its token maps."""

from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vlm_lens.counted import counted
from vlm_lens.geometry import AudioLayout, ImageLayout, MediaLayout
from vlm_lens.inputs.batch import token_strings
from vlm_lens.inputs.media import Medium, is_tokenizer, tokenizer_of
from vlm_lens.inputs.padding import pad_id
from vlm_lens.inputs.positions import PER_POSITION, lengthen, pad_left, stack
from vlm_lens.inputs.token_kinds import Modality, Role
from vlm_lens.inputs.token_map import TokenMap

# Made by some processors, but no input of a forward that is not a training step.
_UNUSED = ("labels", "input_ids")
# Where a processor makes one of these, its images have an axis of samples and one of images.
_PER_SAMPLE = ("pixel_attention_mask", "aspect_ratio_ids")


@dataclass(frozen=True)
class EncodedSample:
    """One sample after tokenization, not padded.

    Attributes:
        ids: The token ids of prompt and answer.
        n_prompt: The length of the prompt.
        in_media: For each position whether it stands for an image or a sound.
        per_position: The processor's other tensors with an entry per position, (1, pos, ...).
        tensors: The processor's other tensors: images, sounds, and what describes them.
        layouts: What becomes of each image or sound.
    """

    ids: list[int]
    n_prompt: int
    in_media: list[bool]
    per_position: dict[str, Tensor]
    tensors: dict[str, Tensor]
    layouts: list[MediaLayout]


def encode(
    processor: Any,
    text: str,
    answer: str | None,
    media: list[Image.Image] | list[np.ndarray],
    layouts: list[MediaLayout],
    *,
    medium: Medium,
    index: int,
) -> EncodedSample:
    """Tokenizes a prompt and its answer, and processes its images or sounds.

    Args:
        processor: The model's processor.
        text: The prompt, with one placeholder per image where the processor wants them.
        answer: Text behind the prompt. It is tokenized by itself: the prompt keeps its tokens.
        media: The prompt's images, in RGB, or its sounds.
        layouts: Their layouts.
        medium: Which of the two they are.
        index: The sample's place in its batch, for error messages.

    Raises:
        ValueError: The processor does something else than its settings say.
    """
    encoded = _process(processor, text, media, medium)
    ids = encoded["input_ids"][0].tolist()
    mask = encoded.get("image_embeds_position_mask")
    if medium.token_id is not None:
        mask = encoded["input_ids"] == medium.token_id
    in_media = [False] * len(ids) if mask is None else mask[0].bool().tolist()
    answer_ids = []
    if answer:
        answer_ids = tokenizer_of(processor)(answer, add_special_tokens=False)["input_ids"]
    per_position = {
        name: lengthen(name, value, len(answer_ids), answer_type=answer_type(processor))
        for name, value in encoded.items()
        if name in PER_POSITION
    }
    tensors = {
        name: value for name, value in encoded.items() if name not in (*PER_POSITION, *_UNUSED)
    }
    if not media:
        tensors = {}  # a Q-Former reads a text next to its image only
    _check_processed_size(layouts, tensors)
    _check_placeholders(layouts, sum(in_media), medium, index)
    in_media += [False] * len(answer_ids)
    return EncodedSample([*ids, *answer_ids], len(ids), in_media, per_position, tensors, layouts)


def _process(
    processor: Any, text: str, media: list[Image.Image] | list[np.ndarray], medium: Medium
) -> dict[str, Tensor]:
    """What the processor makes of one prompt, as tensors with a batch axis of 1."""
    tokenizer = tokenizer_of(processor)
    # Chat templates often write the bos token themselves; the tokenizer must not add another one.
    # A processor that knows the bos token writes it itself too, where the prompt has none.
    has_bos = tokenizer.bos_token is not None and text.lstrip().startswith(tokenizer.bos_token)
    writes_bos = hasattr(processor, "bos_token") and not is_tokenizer(processor)
    settings = {
        "return_tensors": "pt",
        "padding": False,
        "truncation": False,
        "add_special_tokens": not (has_bos or writes_bos),
    }
    if is_tokenizer(processor):
        encoded = processor([text], **settings)
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}
    if not media and answer_type(processor):
        return _text_of_prefix_model(tokenizer, text)
    given = {
        "image": {"images": [media], "images_kwargs": {"return_tensors": "pt"}},
        "audio": {"audio": media, "audio_kwargs": {"return_tensors": "pt"}},
    }
    if medium.name == "audio":
        rate = processor.feature_extractor.sampling_rate
        given["audio"]["audio_kwargs"]["sampling_rate"] = rate
    encoded = processor(text=[text], text_kwargs=settings, **(given[medium.name] if media else {}))
    return {name: value for name, value in encoded.items() if isinstance(value, Tensor)}


def answer_type(processor: Any) -> int:
    """Returns what ``token_type_ids`` are at an answer.

    They are 1 in a model that sees its prompt both ways and its answer one way (PaliGemma, whose
    processor makes labels too); elsewhere 1 marks images.
    """
    return int("labels" in processor.model_input_names)


def _text_of_prefix_model(tokenizer: PreTrainedTokenizerBase, text: str) -> dict[str, Tensor]:
    """PaliGemma's prompt without an image, which its processor refuses to make."""
    encoded = tokenizer(
        f"{tokenizer.bos_token}{text}\n", add_special_tokens=False, return_tensors="pt"
    )
    ids = torch.as_tensor(encoded["input_ids"])
    return {"input_ids": ids, "token_type_ids": torch.zeros_like(ids)}


def _check_processed_size(layouts: list[MediaLayout], tensors: dict[str, Tensor]) -> None:
    views = [view for layout in layouts if isinstance(layout, ImageLayout) for view in layout.views]
    pixels = tensors.get("pixel_values")
    if pixels is None or not views:
        return
    sizes = [view.transform.processed_size for view in views]
    # Images of different sizes are filled up to the largest one.
    width, height = (max(sides) for sides in zip(*sizes, strict=True))
    if pixels.ndim > 2 and tuple(pixels.shape[-2:]) != (height, width):
        raise ValueError(
            f"the image processor made pixel_values of {pixels.shape[-1]}x{pixels.shape[-2]} "
            f"pixels where its settings say {width}x{height}: this kind of image processor is not "
            "supported"
        )
    n_patches = sum(view.rows * view.cols for view in views)
    if pixels.ndim == 2 and len(pixels) != n_patches:
        raise ValueError(
            f"the image processor made {len(pixels)} patches where its settings say {n_patches}: "
            "this kind of image processor is not supported"
        )


def _check_placeholders(layouts: list[MediaLayout], found: int, medium: Medium, index: int) -> None:
    expected = sum(_n_tokens(layout) for layout in layouts)
    if found != expected:
        raise ValueError(
            f"sample {index}: the processor wrote {found} {medium.name} positions, but by the "
            f"model's config its {counted(len(layouts), medium.name)} become {expected}: use the "
            "model's own processor, and leave its settings as they are"
        )


def _n_tokens(layout: MediaLayout) -> int:
    return len(layout.tokens if isinstance(layout, ImageLayout) else layout.spans)


def check_length(sample: EncodedSample, config: Any, medium: Medium, *, index: int) -> None:
    """Raises a ValueError if a sample is longer than the model's context."""
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and len(sample.ids) > longest:
        parts, remedy = "", "shorten the text"
        if sample.layouts:
            n_media = counted(len(sample.layouts), medium.name)
            parts = f" ({sum(sample.in_media)} of them {medium.name} tokens of {n_media})"
            remedy += f" or pass fewer {medium.name}s"
        raise ValueError(
            f"sample {index}: the prompt has {len(sample.ids)} tokens{parts}, but the model's "
            f"context holds {longest}: {remedy}"
        )


def collate(samples: list[EncodedSample], processor: Any) -> dict[str, Tensor]:
    """Stacks samples, padded on the left; the images of all samples follow each other.

    The tokenizer does not do the padding: its own settings (side, pad token) then stay as they are.

    Raises:
        ValueError: Padding is needed, and the tokenizer has no token for it.
    """
    longest = max(len(sample.ids) for sample in samples)
    missing = [longest - len(sample.ids) for sample in samples]
    pad = pad_id(tokenizer_of(processor))
    if pad is None and any(missing):
        raise ValueError(
            "texts of different lengths need padding, but the tokenizer has neither a pad nor an "
            "eos token: set tokenizer.pad_token, or prepare the texts one by one"
        )
    rows = [[pad] * n + sample.ids for n, sample in zip(missing, samples, strict=True)]
    mask = [[0] * n + [1] * (longest - n) for n in missing]
    tensors = {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}
    for name in _names([sample.per_position for sample in samples]):
        if name != "attention_mask":
            tensors[name] = _per_position(name, samples, longest)
    names = _names([sample.tensors for sample in samples])
    per_sample = any(name in names for name in _PER_SAMPLE)
    for name in names:
        parts = _parts(name, samples, per_sample=per_sample)
        is_text = name == "qformer_input_ids"
        # Its mask leaves the padding out, whatever token it is.
        fill = pad_id(processor.qformer_tokenizer) if is_text else None
        tensors[name] = stack(parts, fill=fill or 0)
    if "aspect_ratio_mask" in tensors:
        # Mllama never masks the first tile, not even that of an image that is not there.
        tensors["aspect_ratio_mask"][..., 0] = 1
    return tensors


def _names(given: list[dict[str, Tensor]]) -> list[str]:
    return list(dict.fromkeys(chain.from_iterable(given)))


def _per_position(name: str, samples: list[EncodedSample], longest: int) -> Tensor:
    example = next(s.per_position[name] for s in samples if name in s.per_position)
    blank = example[:, :0]  # what a sample without images has of it: nothing but padding
    return stack([pad_left(s.per_position.get(name, blank), longest) for s in samples])


def _parts(name: str, samples: list[EncodedSample], *, per_sample: bool) -> list[Tensor]:
    """A tensor of all samples that have it; of all samples at all where the model pairs them."""
    parts = [s.tensors[name] for s in samples if name in s.tensors]
    if not per_sample:
        return parts
    return [s.tensors.get(name, torch.zeros_like(parts[0][:, :1])) for s in samples]


def token_maps(samples: list[EncodedSample], processor: Any, medium: Medium) -> list[TokenMap]:
    """Maps the positions of each sample, as `collate` pads them."""
    longest = max(len(sample.ids) for sample in samples)
    special_ids = _special_ids(processor) - {medium.token_id}
    return [
        _token_map(sample, processor, medium, special_ids, n_padding=longest - len(sample.ids))
        for sample in samples
    ]


def _special_ids(processor: Any) -> set[int | None]:
    """The tokenizer's special tokens, and what a processor writes around and into images."""
    tokenizer = tokenizer_of(processor)
    marked = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    tags = tokenizer.convert_tokens_to_ids(getattr(processor, "tag_tokens", []))
    written = [*getattr(processor, "image_token_ids", []), *tags]
    return {*tokenizer.all_special_ids, *marked, *written}


def _token_map(
    sample: EncodedSample,
    processor: Any,
    medium: Medium,
    special_ids: set[int | None],
    *,
    n_padding: int,
) -> TokenMap:
    pad: Any = pad_id(tokenizer_of(processor))  # there is one where there is padding
    padding = [pad] * n_padding
    modality: list[Modality] = ["padding"] * n_padding
    prompt: list[Role] = ["prompt"] * (n_padding + sample.n_prompt)
    answer: list[Role] = ["answer"] * (len(sample.ids) - sample.n_prompt)
    for token_id, in_media in zip(sample.ids, sample.in_media, strict=True):
        other = "special" if token_id in special_ids else "text"
        modality.append(medium.modality if in_media else other)
    images = [layout for layout in sample.layouts if isinstance(layout, ImageLayout)]
    known_ids = sorted(i for i in special_ids if i is not None)
    tokens = token_strings(tokenizer_of(processor), padding + sample.ids)
    if medium.token_id is None:  # the ids below an image are arbitrary, and would read as words
        in_media = [False] * n_padding + sample.in_media
        tokens = [medium.token if m else t for m, t in zip(in_media, tokens, strict=True)]
    return TokenMap(
        tokens=tokens,
        modality=modality,
        role=prompt + answer,
        image_index=_image_index(modality, images),
        layouts=images,
        special_tokens=frozenset(token_strings(tokenizer_of(processor), known_ids)),
        audios=[layout for layout in sample.layouts if isinstance(layout, AudioLayout)],
    )


def _image_index(modality: list[Modality], layouts: list[ImageLayout]) -> list[int]:
    """The image of each position: one image's positions follow the other's."""
    order = (index for index, layout in enumerate(layouts) for _ in layout.tokens)
    return [next(order) if kind == "image" else -1 for kind in modality]
