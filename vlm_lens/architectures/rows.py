"""Where the patches of each image lie in the tensors of towers with a layout of their own.

Each function takes a module and its arguments by name, and gives the row of every patch of every
image or tile, row by row of the picture, filled up with `NO_ROW` (see `vlm_lens.hooks.patch_rows`).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers.vision_utils import get_vision_window_index

from vlm_lens.hooks.patch_rows import NO_ROW

Arguments = dict[str, Any]


def batch_rows(_block: nn.Module, arguments: Arguments) -> Int[Tensor, "batch pos"]:
    """For a block that flattens batch and position into one axis (OPT)."""
    batch, length = arguments["hidden_states"].shape[:2]
    return torch.arange(batch * length).view(batch, length)


def qwen_patch_rows(tower: nn.Module, arguments: Arguments) -> Int[Tensor, "frame patch"]:
    """For Qwen-VL: groups of 2x2 patches follow each other, in Qwen2.5-VL window by window.

    A video frame pair counts as an image, since attention keeps to it.
    """
    side = _merge_side(tower)
    new_group = _new_group(tower, arguments["grid_thw"])
    frames, start = [], 0
    for n_frames, rows, cols in arguments["grid_thw"].tolist():
        stored = torch.arange(start, start + n_frames * rows * cols)
        stored = new_group[stored // side**2] * side**2 + stored % side**2
        blocks = stored.view(n_frames, rows // side, cols // side, side, side)
        frames += blocks.transpose(2, 3).reshape(n_frames, rows * cols)
        start += n_frames * rows * cols
    return pad_sequence(frames, batch_first=True, padding_value=NO_ROW)


def qwen_merged_rows(tower: nn.Module, arguments: Arguments) -> Int[Tensor, "frame token"]:
    """For Qwen-VL's mergers: one row for each group of 2x2 patches."""
    side = _merge_side(tower)
    new_group = _new_group(tower, arguments["grid_thw"])
    frames, start = [], 0
    for n_frames, rows, cols in arguments["grid_thw"].tolist():
        n_groups = n_frames * (rows // side) * (cols // side)
        frames += new_group[start : start + n_groups].view(n_frames, -1)
        start += n_groups
    return pad_sequence(frames, batch_first=True, padding_value=NO_ROW)


def _merge_side(tower: Any) -> int:
    return int(tower.spatial_merge_size)


def _new_group(tower: Any, grid_thw: Int[Tensor, "image 3"]) -> Int[Tensor, " group"]:
    """Where each merge group goes when the tower sorts them by window."""
    if not hasattr(tower, "window_size"):
        return torch.arange(int(grid_thw.prod(-1).sum()) // _merge_side(tower) ** 2)
    order, _ = get_vision_window_index(
        grid_thw.cpu(),
        spatial_merge_size=tower.spatial_merge_size,
        window_size=tower.window_size,
        patch_size=tower.patch_size,
    )
    return order.cpu().argsort()


def pixtral_patch_rows(tower: Any, arguments: Arguments) -> Int[Tensor, "image patch"]:
    """For Pixtral: the patches of all images follow each other."""
    return _consecutive(arguments, arguments["pixel_values"].shape, tower.patch_size)


def pixtral_merged_rows(projector: Any, arguments: Arguments) -> Int[Tensor, "image token"]:
    """For Mistral3's projector, after the merging: the tokens of all images follow each other."""
    merger = projector.patch_merger
    return _consecutive(arguments, None, merger.patch_size * merger.spatial_merge_size)


def pixtral_projector_rows(projector: Any, arguments: Arguments) -> Int[Tensor, "image patch"]:
    """For the patches that enter Mistral3's projector."""
    return _consecutive(arguments, None, projector.patch_merger.patch_size)


def _consecutive(arguments: Arguments, shape: Any, cell: int) -> Int[Tensor, "image cell"]:
    """Rows of images of known pixel sizes, one after the other; `cell` is in pixels."""
    sizes = arguments.get("image_sizes")
    if sizes is None:
        sizes = [shape[-2:]] * shape[0]
    counts = [(int(height) // cell) * (int(width) // cell) for height, width in sizes]
    images = list(torch.arange(sum(counts)).split(counts))
    return pad_sequence(images, batch_first=True, padding_value=NO_ROW)


def mllama_patch_rows(tower: Any, arguments: Arguments) -> Int[Tensor, "tile patch"]:
    """For Mllama's tower: four slots for tiles, each padded to a multiple of eight patches."""
    return _tiles(tower, arguments, padded=tower.num_patches + (-tower.num_patches) % 8)


def mllama_feature_rows(tower: Any, arguments: Arguments) -> Int[Tensor, "tile patch"]:
    """For what Mllama's tower hands on: the padding of patches is gone, that of tiles is not."""
    return _tiles(tower, arguments, padded=tower.num_patches)


def _tiles(tower: Any, arguments: Arguments, *, padded: int) -> Int[Tensor, "tile patch"]:
    used = arguments["aspect_ratio_mask"].flatten().nonzero().flatten().cpu()
    return used[:, None] * padded + torch.arange(tower.num_patches)
