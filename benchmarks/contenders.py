"""What Hugging Face, HookedVLM, TransformerBridge and nnsight each do for each task."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from benchmarks.models import Subject
from benchmarks.surroundings import installed
from benchmarks.tasks import INNER, N_ABLATED, N_NEW, TASKS, ablate, greedy
from vlm_lens import HookedVLM

Run = Callable[[], tuple[Any, ...]]
"""One task: returns logits or tokens, and behind them whatever it keeps."""

HF, VLM_LENS, BRIDGE, NNSIGHT = "Hugging Face", "HookedVLM", "TransformerBridge", "nnsight"


class Contender:
    """One way to do the tasks: each that it can do is a method of the task's name."""

    def __init__(self, *, cannot: dict[str, str] | None = None) -> None:
        self.cannot = cannot or {}
        """Why a task is not among the methods."""
        self.notes: dict[str, str] = {}
        """What a task keeps."""
        self.n_kept: dict[str, int] = {}
        """How many hook points a task keeps, counted for HookedVLM only."""

    @property
    def runs(self) -> dict[str, Run]:
        return {task: getattr(self, task) for task in TASKS if hasattr(self, task)}


class HuggingFace(Contender):
    """The model itself: forward, and generation without hooks."""

    def __init__(self, subject: Subject, n_new: int) -> None:
        keeping = ("lm_neurons", "all_neurons", "everything")
        super().__init__(cannot=dict.fromkeys(keeping, "keeps no neurons"))
        self.model, self.inputs, self.n_new = subject.hf_model, subject.inputs, n_new

    def forward(self) -> tuple[Tensor]:
        return (self.model(**self.inputs).logits,)

    def generate(self) -> tuple[Tensor]:
        return (self.model.generate(**self.inputs, **greedy(self.n_new)),)


class VlmLens(Contender):
    """vlm_lens around the very model that Hugging Face runs, by the calls that its docs show."""

    def __init__(self, subject: Subject, n_new: int) -> None:
        super().__init__()
        self.model: Any = HookedVLM(subject.hf_model)
        self.inputs, self.n_new = subject.inputs, n_new
        names = list(self.model.hook_dict)
        self.neurons = [name for name in names if name.endswith("mlp.hook_post")]
        self.n_kept = {
            "lm_neurons": sum(name.startswith("blocks.") for name in self.neurons),
            "all_neurons": len(self.neurons),
            "everything": sum(not name.endswith(INNER) for name in names),
        }
        self.notes = {task: f"{count} hook points" for task, count in self.n_kept.items()}

    def forward(self) -> tuple[Tensor]:
        return (self.model(self.inputs),)

    def lm_neurons(self) -> tuple[Tensor, Any]:
        return self.model.run_with_cache(self.inputs, names_filter="blocks.*.mlp.hook_post")

    def all_neurons(self) -> tuple[Tensor, Any]:
        return self.model.run_with_cache(self.inputs, names_filter=self.neurons)

    def everything(self) -> tuple[Tensor, Any]:
        return self.model.run_with_cache(self.inputs)

    def generate(self) -> tuple[Tensor]:
        with self.model.hooks(fwd_hooks=[("blocks.*.mlp.hook_post", ablate)]):
            return (self.model.generate(self.inputs, return_type="tokens", **greedy(self.n_new)),)


class Bridge(Contender):
    """TransformerLens' own wrapper, on a copy: it changes the model it wraps (eager attention)."""

    def __init__(self, subject: Subject, n_new: int) -> None:
        super().__init__()
        self.model = build_bridge(copy.deepcopy(subject.hf_model))
        self.rest = dict(subject.inputs)
        self.tokens = self.rest.pop("input_ids")
        self.n_new = n_new
        self.neurons = [name for name in self.model.hook_dict if name.endswith("mlp.hook_post")]
        self.language = [name for name in self.neurons if name.startswith("blocks.")]
        self.notes = {"everything": "its own hook points, which are not the same ones"}

    def forward(self) -> tuple[Tensor]:
        return (self.model(self.tokens, **self.rest),)

    def lm_neurons(self) -> tuple[Tensor, Any]:
        return self._keep(self.language)

    def all_neurons(self) -> tuple[Tensor, Any]:
        return self._keep(self.neurons)

    def everything(self) -> tuple[Tensor, Any]:
        return self._keep(lambda name: not name.endswith(INNER))

    def _keep(self, names: list[str] | Callable[[str], bool]) -> tuple[Tensor, Any]:
        return self.model.run_with_cache(self.tokens, names_filter=names, **self.rest)

    def generate(self) -> tuple[Tensor]:
        """Its generation stops at no token, and takes the image but no attention mask."""
        with self.model.hooks(fwd_hooks=[(name, ablate) for name in self.language]):
            tokens = self.model.generate(
                self.tokens,
                pixel_values=self.rest["pixel_values"],
                max_new_tokens=self.n_new,
                do_sample=False,
                stop_at_eos=False,
                return_type="tokens",
                verbose=False,
            )
        return (tokens,)


def build_bridge(hf_model: Any) -> Any:
    """Wrap a loaded model; the way that never runs pip."""
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
    from transformer_lens.model_bridge.sources.transformers import helpers

    helpers._ensure_torchvision = lambda: False
    return build_bridge_from_module(
        hf_model, type(hf_model).__name__, hf_config=copy.deepcopy(hf_model.config)
    )


class NNsight(Contender):
    """nnsight's traces over raw module paths, on a copy; it knows no names of its own."""

    def __init__(self, subject: Subject, n_new: int) -> None:
        from nnsight import NNsight as Envoy

        super().__init__()
        self.model: Any = Envoy(copy.deepcopy(subject.hf_model))
        self.inputs, self.n_new = subject.inputs, n_new
        parts = self.model.model
        vision = [layer.mlp.fc2 for layer in parts.vision_tower.encoder.layers]
        self.language = [layer.mlp.down_proj for layer in parts.language_model.layers]
        self.in_order = [*vision, parts.multi_modal_projector.linear_2, *self.language]
        self.notes = {"everything": "the output of every module"}

    def forward(self) -> tuple[Tensor]:
        with self.model.trace(**self.inputs):
            logits = self.model.output.logits.save()
        return (logits,)

    def lm_neurons(self) -> tuple[Tensor, Any]:
        return self._keep(self.language)

    def all_neurons(self) -> tuple[Tensor, Any]:
        return self._keep(self.in_order)

    def _keep(self, modules: Sequence[Any]) -> tuple[Tensor, Any]:
        from nnsight import save

        with self.model.trace(**self.inputs):
            kept = save([module.input for module in modules])
            logits = self.model.output.logits.save()
        return logits, kept

    def everything(self) -> tuple[Tensor, Any]:
        with self.model.trace(**self.inputs) as tracer:
            kept = tracer.cache(device=None)
            logits = self.model.output.logits.save()
        return logits, kept

    def generate(self) -> tuple[Tensor]:
        how = {**greedy(self.n_new), "fn": self.model._module.generate}
        with self.model.trace(**self.inputs, **how) as tracer:
            for _ in tracer.iter[: self.n_new]:
                for module in self.language:
                    module.input[..., :N_ABLATED] = 0
            tokens = tracer.result.save()
        return (tokens,)


def nnsight_if_installed(subject: Subject, n_new: int) -> Contender:
    """nnsight is an extra; without it, its column is empty."""
    if installed("nnsight"):
        return NNsight(subject, n_new)
    return Contender(cannot=dict.fromkeys(TASKS, "nnsight is not installed"))


CONTENDERS: dict[str, Callable[[Subject, int], Contender]] = {
    HF: HuggingFace,
    VLM_LENS: VlmLens,
    BRIDGE: Bridge,
    NNSIGHT: nnsight_if_installed,
}


def build_contenders(subject: Subject, *, n_new: int = N_NEW) -> dict[str, Contender]:
    """All contenders on one model, Hugging Face first."""
    return {name: make(subject, n_new) for name, make in CONTENDERS.items()}
