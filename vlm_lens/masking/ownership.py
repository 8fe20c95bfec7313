"""Which sample of a batch each position of an activation belongs to, at any hook point.

Rows of the language model are samples. Rows of an encoder, a Q-Former or a projector are pictures:
a sample has none, one, or one for each tile of each of its images. Both are filled up where they
are shorter than the longest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from vlm_lens.geometry import ImageLayout
from vlm_lens.masking.examples import Batch
from vlm_lens.neurons.neuron import split_name

NO_SAMPLE = -1
"""The owner of padding, and of pictures that only fill a batch up."""

Owners = Int[Tensor, "row pos"]


class Ownership:
    """Says which sample each position of an activation belongs to.

    Args:
        batch: The samples, and what the model is given of them.
        first_token: Whether the first token of each of the language model's sequences belongs to
            its sample, or else to none.

    Example:
        >>> from vlm_lens import HookedVLM, load_samples
        >>> from vlm_lens.masking import make_batches
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> [batch] = make_batches(model, load_samples("shapes-llava", n=2))
        >>> owners = Ownership(batch).of("vision_encoder.blocks.0.mlp.hook_post", 2, 64)
        >>> owners[:, 0].tolist()
        [0, 1]
    """

    def __init__(self, batch: Batch, *, first_token: bool = True) -> None:
        self._batch, self._first_token = batch, first_token
        self._known: dict[tuple[str, int, int], Owners] = {}
        # Each picture's sample, in the order in which the encoder sees them, and its layout.
        self._pictures: list[tuple[int, ImageLayout]] = [
            (sample, layout)
            for sample, token_map in enumerate(batch.prompts.token_map)
            for layout in token_map.layouts
            for _ in layout.views
        ]

    def of(self, name: str, n_rows: int, n_positions: int) -> Owners:
        """The number of each position's sample, on the CPU; `NO_SAMPLE` where it has none.

        Args:
            name: A hook name.
            n_rows: Size of the first axis of the activations there.
            n_positions: Size of their second axis.

        Raises:
            ValueError: Activations of this shape are not what the batch gives at this point.
        """
        component = split_name(name)[0].split(".")[0]
        kind = "text_mlp" if ".text_mlp." in name else component
        key = (kind, n_rows, n_positions)
        if key not in self._known:
            owners = self._owners(kind, n_positions)
            if owners is None or owners.shape != (n_rows, n_positions):
                found = "another number" if owners is None else "x".join(map(str, owners.shape))
                raise ValueError(
                    f"expected activations of {found} rows and positions at {name!r} from this "
                    f"batch of {len(self._batch)} samples, got {n_rows}x{n_positions}: whose they "
                    "are is not known. Run one sample at a time (batch_size=1) or leave it out."
                )
            self._known[key] = owners
        return self._known[key]

    def _owners(self, kind: str, width: int) -> Owners | None:
        batch = self._batch
        if kind in ("language_model", "decoder"):
            return self._numbered(batch.real)
        if kind == "encoder":
            return self._numbered(batch.arguments["attention_mask"].bool())
        if "feature_attention_mask" in batch.arguments:
            return self._of_sounds(width)
        if kind in ("qformer", "text_mlp"):
            return self._of_queries(kind, width)
        return self._of_pictures(width)

    def _numbered(self, real: Bool[Tensor, "batch pos"]) -> Owners:
        """Row i is sample i, where there is no padding."""
        real = real.cpu()
        if not self._first_token:
            real = real & (real.cumsum(1) > 1)
        return torch.where(real, torch.arange(len(real))[:, None], NO_SAMPLE)

    # Pictures ---------------------------------------------------------------------------------

    def _of_pictures(self, width: int) -> Owners | None:
        """One row for each picture, in the order of the samples."""
        counts = self._n_positions(width)
        if counts is None:
            return None
        samples = [sample for sample, _ in self._pictures]
        if "aspect_ratio_mask" in self._batch.arguments:
            samples = self._of_tiles()
            counts = [width] * len(samples)
        return _rows(samples, counts, width)

    def _n_positions(self, width: int) -> list[int] | None:
        """How many of a row's positions each picture has; None if the width fits none."""
        layouts = [layout for _, layout in self._pictures]
        patches = [layout.n_positions - layout.n_class for layout in layouts]
        if len(set(patches)) < 2:
            return [width] * len(patches)
        # Pictures of different sizes: patches in front of the merging, tokens behind it.
        tokens = [sum(grid.rows * grid.cols for grid in layout.grids) for layout in layouts]
        fitting = (counts for counts in (patches, tokens) if max(counts) == width)
        return next(fitting, None)

    def _of_tiles(self) -> list[int]:
        """The samples of Mllama's tiles: images that are not there have one, which is nobody's."""
        used = self._batch.arguments["aspect_ratio_mask"].sum(-1).tolist()
        token_maps = self._batch.prompts.token_map
        return [
            sample if image < len(token_maps[sample].layouts) else NO_SAMPLE
            for sample, counts in enumerate(used)
            for image, n_tiles in enumerate(counts)
            for _ in range(int(n_tiles))
        ]

    # Queries and sounds -----------------------------------------------------------------------

    def _of_queries(self, kind: str, width: int) -> Owners | None:
        """Learnt queries, and behind them the text that InstructBLIP's Q-Former reads too."""
        samples = [sample for sample, _ in self._pictures]
        n_queries = len(self._pictures[0][1].tokens) if self._pictures else 0
        queries = _rows(samples, [n_queries] * len(samples), n_queries)
        mask = self._batch.arguments.get("qformer_attention_mask")
        if mask is None:
            return queries
        text = torch.where(mask.bool().cpu(), torch.tensor(samples)[:, None], NO_SAMPLE)
        if kind == "text_mlp":
            return text
        return queries if width == n_queries else torch.cat([queries, text], dim=1)

    def _of_sounds(self, width: int) -> Owners | None:
        """One row for each sound; a convolution halves its frames, and a pooling does so again."""
        mask = self._batch.arguments["feature_attention_mask"].cpu()
        maps = self._batch.prompts.token_map
        samples = [sample for sample, token_map in enumerate(maps) for _ in token_map.audios]
        sizes = torch.cat([mask.sum(1), torch.tensor([mask.shape[1]])])
        halved = (sizes - 1) // 2 + 1
        for counts in (halved, (halved - 2) // 2 + 1):
            *lengths, longest = counts.tolist()
            if longest == width:
                return _rows(samples, lengths, width)
        return None


def _rows(samples: Sequence[int], counts: Sequence[int], width: int) -> Owners:
    """Rows of these samples, of which so many positions in front are real."""
    real = torch.arange(width) < torch.tensor(counts, dtype=torch.long)[:, None]
    return torch.where(real, torch.tensor(samples, dtype=torch.long)[:, None], NO_SAMPLE)
