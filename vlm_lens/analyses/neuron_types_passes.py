"""The two passes over the samples that type neurons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch

from vlm_lens.analyses.neuron_types_counts import (
    SCALE,
    Comparison,
    Counter,
    Grid,
    SiteCounts,
    Thresholds,
)
from vlm_lens.data import Sample
from vlm_lens.hooks.names import NamesFilter
from vlm_lens.inputs.token_types import TokenType
from vlm_lens.model import HookedVLM
from vlm_lens.neurons.sites import Which
from vlm_lens.passes import Run, one_pass
from vlm_lens.passes.answers import Answers
from vlm_lens.passes.data import ONE
from vlm_lens.passes.run import OnBatch
from vlm_lens.statistics import NeuronStatistics, collect

_TEXT = 1
"""The place of the text tokens among the types that statistics are asked for."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What makes a type; see `vlm_lens.analyses.neuron_types.classify`.

    Raises:
        ValueError: A number is out of its range, or visual and text tokens overlap.
    """

    thresholds: Thresholds
    top_samples: int
    comparison: Comparison = ">="
    visual_tokens: str = "image"
    text_tokens: str = "answer text"
    maximum_over: str | None = None
    grid: Mapping[str, Sequence[int | float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.top_samples < 1:
            raise ValueError(f"expected top_samples of at least 1, got {self.top_samples}")
        if self.comparison not in get_args(Comparison):
            raise ValueError(f"expected a comparison '>=' or '>', got {self.comparison!r}")
        names = asdict(self.thresholds)
        if unknown := [name for name in self.grid if name not in names]:
            raise ValueError(f"expected a grid of {list(names)}, got {unknown[0]!r}")
        for name, value in names.items():
            for one in (value, *self.grid.get(name, ())):
                self._check(name, one)
        visual, text = self.types
        if shared := visual.kinds & text.kinds:
            raise ValueError(
                f"visual tokens ({visual.name!r}) and text tokens ({text.name!r}) overlap: both "
                f"are {sorted(shared)[0]}"
            )

    def _check(self, name: str, value: int | float) -> None:
        least = 1 if self.comparison == ">=" else 0
        if name.startswith("T") and not 0 <= value < SCALE:
            raise ValueError(f"expected {name} from 0 to below {SCALE:g}, got {value}")
        if name.startswith("n") and (value < least or value != int(value)):
            raise ValueError(f"expected a whole number {name} of at least {least}, got {value}")

    @property
    def types(self) -> tuple[TokenType, TokenType]:
        """Of visual and of text tokens."""
        return TokenType.parse(self.visual_tokens), TokenType.parse(self.text_tokens)

    @property
    def all_thresholds(self) -> Grid:
        """Those that count, and those that are tried besides."""
        return Grid.around(self.thresholds, self.grid, self.comparison)

    def fields(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        return {
            **asdict(self.thresholds),
            "comparison": self.comparison,
            "visual_tokens": self.visual_tokens,
            "text_tokens": self.text_tokens,
            "maximum_over": self.maximum_over,
            "grid": {name: list(values) for name, values in self.grid.items()},
            "top_samples": self.top_samples,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Passes:
    """Two passes over the same samples.

    Attributes:
        model: What runs.
        samples: What it is given.
        setting: What makes a type.
        answers: What is behind the prompts; those of the first pass are used again.
        batch_size: How many samples run at once.
        checkpoint: A folder for what is done.
        checkpoint_every: After so many batches it is written.
    """

    model: HookedVLM
    samples: Sequence[Sample]
    setting: Setting
    answers: Answers
    batch_size: int
    checkpoint: Path | None
    checkpoint_every: int

    def first(
        self,
        *,
        sites: Which | NamesFilter,
        component: str | None,
        on_batch: OnBatch | None,
    ) -> NeuronStatistics:
        """Each neuron's maximum and top samples.

        Raises:
            ValueError: A site has no visual or no text tokens.
        """
        setting = self.setting
        found = collect(
            self.model,
            self.samples,
            sites=sites,
            component=component,
            token_types=[setting.visual_tokens, setting.text_tokens],
            top_k=setting.top_samples,
            top_over=setting.maximum_over,
            answers=self.answers.source,
            max_new_tokens=self.answers.max_new_tokens,
            own_answers=self.answers.known,
            batch_size=self.batch_size,
            checkpoint=self.checkpoint,
            checkpoint_every=self.checkpoint_every,
            on_batch=on_batch,
        )
        for name, by_type in found.count.items():
            for token_type in found.token_types:
                if token_type not in by_type:
                    raise ValueError(
                        f"there are no tokens of type {token_type!r} at {name!r} in any of the "
                        f"{found.n_samples} samples, so its neurons have no type: choose other "
                        "sites, tokens or samples"
                    )
            if not len(found.top[name].samples):
                raise ValueError(
                    f"there are no tokens of type {setting.maximum_over!r} at {name!r}"
                )
        return found

    def second(
        self, statistics: NeuronStatistics, *, on_batch: OnBatch | None
    ) -> dict[str, SiteCounts]:
        """How many of the top samples are of each type, on the CPU."""
        top = {name: found.samples for name, found in statistics.top.items()}
        counter = Counter(
            types=self.setting.types,
            grid=self.setting.all_thresholds,
            maxima={name: found.values[0] for name, found in statistics.top.items()},
            top=top,
        )
        passed = one_pass(
            self.model,
            self.samples,
            {"types": counter},
            sites=list(top),
            answers=self.answers,
            about={**_known(statistics), **self.setting.fields()},
            only=set(torch.cat([numbers.flatten() for numbers in top.values()]).tolist()),
            run=Run(
                batch_size=self.batch_size,
                folder=self.checkpoint,
                every=self.checkpoint_every,
                kind="types-progress",
                on_batch=on_batch,
            ),
        )
        return {name: SiteCounts(**state) for name, state in passed.of("types", ONE).items()}


def _known(statistics: NeuronStatistics) -> dict[str, Any]:
    return {name: v for name, v in statistics.parameters.items() if name != "provenance"}


def n_text_tokens(statistics: NeuronStatistics) -> int:
    """How many text tokens all samples have together."""
    site = next(iter(statistics.sites.values()))
    return sum(moments.count for types, moments in site.moments.items() if _TEXT in types)
