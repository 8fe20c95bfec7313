"""Run a processor on one sample, and put samples together as a batch with its token maps."""

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaConfig, LlavaProcessor, PreTrainedTokenizerBase

from vlm_lens.inputs.batch import token_strings
from vlm_lens.inputs.geometry import PatchGrid
from vlm_lens.inputs.token_map import NO_CELL, Modality, Role, TokenMap


@dataclass(frozen=True)
class EncodedSample:
    """One sample after tokenization, not padded."""

    ids: list[int]
    n_prompt: int
    image_tensors: dict[str, Tensor]
    grids: list[PatchGrid]


def encode(
    processor: LlavaProcessor,
    text: str,
    answer: str | None,
    pictures: list[Image.Image],
    grids: list[PatchGrid],
) -> EncodedSample:
    """Tokenizes a prompt and its answer, and processes its images.

    Args:
        processor: The model's processor.
        text: The prompt, with one placeholder per image.
        answer: Text behind the prompt. It is tokenized by itself: the prompt keeps its tokens.
        pictures: The prompt's images, in RGB.
        grids: Their patch grids.

    Raises:
        ValueError: The image processor does something else than its settings say.
    """
    tokenizer = processor.tokenizer
    # Chat templates often write the bos token themselves; the tokenizer must not add another one.
    has_bos = tokenizer.bos_token is not None and text.lstrip().startswith(tokenizer.bos_token)
    encoded = processor(
        images=pictures or None,
        text=[text],
        text_kwargs={
            "return_tensors": "pt",
            "padding": False,
            "truncation": False,
            "add_special_tokens": not has_bos,
            "return_token_type_ids": False,
        },
        images_kwargs={"return_tensors": "pt"},
    )
    prompt_ids = encoded["input_ids"][0].tolist()
    answer_ids = tokenizer(answer, add_special_tokens=False)["input_ids"] if answer else []
    names = processor.image_processor.model_input_names
    tensors = {name: encoded[name] for name in names if name in encoded}
    _check_processed_size(grids, tensors)
    return EncodedSample([*prompt_ids, *answer_ids], len(prompt_ids), tensors, grids)


def _check_processed_size(grids: list[PatchGrid], tensors: dict[str, Tensor]) -> None:
    for grid in grids:
        width, height = grid.transform.processed_size
        made = tuple(tensors["pixel_values"].shape[-2:])
        if made != (height, width):
            raise ValueError(
                f"the image processor made pixel_values of {made[1]}x{made[0]} pixels where its "
                f"settings say {width}x{height}: this kind of image processor is not supported"
            )


def check_length(sample: EncodedSample, config: LlavaConfig, *, index: int) -> None:
    """Raises a ValueError if a sample is longer than the model's context."""
    longest = config.get_text_config().max_position_embeddings
    if len(sample.ids) > longest:
        n_image = sample.ids.count(config.image_token_id)
        raise ValueError(
            f"sample {index}: the prompt has {len(sample.ids)} tokens ({n_image} of them image "
            f"tokens of {len(sample.grids)} image(s)), but the model's context holds {longest}: "
            "shorten the text or pass fewer images"
        )


def collate(samples: list[EncodedSample], tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    """Stacks samples, padded on the left; the images of all samples follow each other.

    The tokenizer does not do the padding: its own settings (side, pad token) then stay as they are.

    Raises:
        ValueError: Padding is needed, and the tokenizer has no token for it.
    """
    longest = max(len(sample.ids) for sample in samples)
    missing = [longest - len(sample.ids) for sample in samples]
    pad = _pad_id(tokenizer)
    if pad is None and any(missing):
        raise ValueError(
            "texts of different lengths need padding, but the tokenizer has neither a pad nor an "
            "eos token: set tokenizer.pad_token, or prepare the texts one by one"
        )
    rows = [[pad] * n + sample.ids for n, sample in zip(missing, samples, strict=True)]
    mask = [[0] * n + [1] * (longest - n) for n in missing]
    tensors = {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}
    for name in dict.fromkeys(name for sample in samples for name in sample.image_tensors):
        parts = [s.image_tensors[name] for s in samples if name in s.image_tensors]
        tensors[name] = torch.cat(parts)
    return tensors


def token_maps(samples: list[EncodedSample], processor: LlavaProcessor) -> list[TokenMap]:
    """Maps the positions of each sample, as `collate` pads them."""
    longest = max(len(sample.ids) for sample in samples)
    return [
        _token_map(sample, processor, n_padding=longest - len(sample.ids)) for sample in samples
    ]


def _token_map(sample: EncodedSample, processor: LlavaProcessor, *, n_padding: int) -> TokenMap:
    tokenizer = processor.tokenizer
    padding = [_pad_id(tokenizer)] * n_padding
    special_ids = set(tokenizer.all_special_ids) - {processor.image_token_id}
    modality: list[Modality] = ["padding"] * n_padding
    prompt: list[Role] = ["prompt"] * (n_padding + sample.n_prompt)
    answer: list[Role] = ["answer"] * (len(sample.ids) - sample.n_prompt)
    for token_id in sample.ids:
        is_image = token_id == processor.image_token_id
        modality.append("image" if is_image else "special" if token_id in special_ids else "text")
    image_index, cells = _patches(modality, sample.grids, n_class_tokens(processor))
    return TokenMap(
        tokens=token_strings(tokenizer, padding + sample.ids),
        modality=modality,
        role=prompt + answer,
        image_index=image_index,
        cells=cells,
        grids=sample.grids,
        special_tokens=frozenset(token_strings(tokenizer, sorted(special_ids))),
    )


def _patches(
    modality: list[Modality], grids: list[PatchGrid], n_class: int
) -> tuple[list[int], list[tuple[int, int]]]:
    """The image and the cell of each position: image after image, each row by row."""
    shown = [
        (index, cell)
        for index, grid in enumerate(grids)
        for cell in [NO_CELL] * n_class
        + [(row, col) for row in range(grid.rows) for col in range(grid.cols)]
    ]
    patches = iter(shown)
    placed = [next(patches) if kind == "image" else (-1, NO_CELL) for kind in modality]
    return [index for index, _ in placed], [cell for _, cell in placed]


def n_class_tokens(processor: LlavaProcessor) -> int:
    """How many of an image's positions come before those of its patches."""
    dropped = processor.vision_feature_select_strategy == "default"
    return processor.num_additional_image_tokens - dropped


def _pad_id(tokenizer: Any) -> Any:
    """The id of the pad token, else of the eos token, else None."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
