"""Models with known critical neurons, and the searches that are timed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from benchmarks.models import FIRST_WORD, SIZES, Size, llava_config
from vlm_lens import HookedVLM, load_samples
from vlm_lens.analyses import can
from vlm_lens.data import Sample
from vlm_lens.neurons import NeuronSet
from vlm_lens.neurons.sites import sites
from vlm_lens.passes.batch import Batch, make_batches

ALWAYS, ANSWER = -2, -1
"""Channels of the residual stream: the same at every position; what speaks for the answer."""

GATES = "blocks.*.mlp.hook_pre"
"""The planted neurons are among these: output channels of the language model's gates."""

_SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>", "<image>"]
N_NEW = 4
"""Tokens of an answer of the random models."""

_N_WORDS, _ANSWER_TOKEN = 31, FIRST_WORD + 2
_LEVEL = 4.0
"""What `ALWAYS` holds: so much that all blocks' norms are nearly alike, and all planted gates."""
_OPEN = 1.6
"""What a planted gate reads `ALWAYS` with; behind the norm this is about 35."""
_FAINT = 1e-9
"""What planted units write `ANSWER` with: all together hardly add to the norm of the stream."""
_SPREAD, _MARGIN = 2.5, 7.0
"""Standard deviation of the logits; by how much the answer's exceeds the sum of the others."""


@dataclass(frozen=True, eq=False)
class Case:
    """One search for critical neurons: the model, what it is measured on, and the ranking."""

    what: str
    model: HookedVLM
    batches: list[Batch]
    ranking: NeuronSet
    max_new_tokens: int

    @property
    def n_samples(self) -> int:
        return sum(map(len, self.batches))


def shapes_llava(*, n_samples: int, component: str | None, max_k: int, task: str = "image") -> Case:
    """The bundled model, its neurons ranked by CAN on questions about images, or told scenes."""
    model = HookedVLM.from_pretrained("shapes-llava")
    samples = load_samples("shapes-llava", task=task, n=n_samples)
    scores = can.score(model, samples, sites=sites(model, component=component))
    where = "all components" if component is None else f"the {component.replace('_', ' ')}"
    batches = make_batches(model, samples)
    told = " on questions about told scenes" if task == "text" else ""
    what = f"output channels of {where}, ranked by CAN{told}"
    return Case(what, model, batches, scores.ranking(max_k), 20)


def planted(
    size: str, *, n_planted: int, blocks: Sequence[int], n_samples: int, max_k: int
) -> Case:
    """A random model in which a group of gates adds up to the answer, ranked by CAN."""
    model = build_planted(size, n_planted=n_planted, blocks=blocks)
    samples = random_samples(SIZES[size], n=n_samples)
    scores = can.score(model, samples, sites=GATES, max_new_tokens=N_NEW)
    batches = make_batches(model, samples, max_new_tokens=N_NEW)
    what = (
        f"{n_planted:,} gates planted in blocks {min(blocks)} to {max(blocks)}, ranked by CAN "
        "among all gates"
    )
    return Case(what, model, batches, scores.ranking(max_k), N_NEW)


# The plant --------------------------------------------------------------------------------------


@torch.no_grad()
def build_planted(size: str, *, n_planted: int, blocks: Sequence[int]) -> HookedVLM:
    """A random LLaVA that always gives one answer, of which each planted gate holds a share.

    Every planted gate is open at every position and has its unit write a positive number to the
    channel `ANSWER`, which nothing but one row of the language-model head reads. So each gate that
    is masked makes the answer less likely, and nothing else changes: the perplexity of the answer
    rises with every planted gate that is masked, in whatever order. (The channel is in the norms'
    root mean square too, of which it is one part in ten thousand.)

    Args:
        size: Of `SIZES`.
        n_planted: How many gates share the answer.
        blocks: The blocks that they are spread over.
    """
    torch.manual_seed(0)
    hf_model: Any = LlavaForConditionalGeneration(llava_config(SIZES[size])).eval()
    model = HookedVLM(hf_model, processor=build_processor(SIZES[size]))
    _clear(hf_model)
    shares = torch.rand(n_planted) + 1.5
    parts = np.array_split(np.arange(n_planted), len(blocks))
    for block, part in zip(blocks, parts, strict=True):
        _plant(hf_model.model.language_model.layers[block].mlp, shares[part])
    _calibrate(model, SIZES[size])
    return model


def _clear(hf_model: Any) -> None:
    """Has nothing read or write the two channels, but embeddings write to `ALWAYS`."""
    channels = [ALWAYS, ANSWER]
    for block in hf_model.model.language_model.layers:
        mlp, attention = block.mlp, block.self_attn
        reads = (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj)
        for linear in reads:
            linear.weight[:, channels] = 0.0
        for linear in (attention.o_proj, mlp.down_proj):
            linear.weight[channels] = 0.0
    hf_model.lm_head.weight[:, channels] = 0.0
    embed = hf_model.get_input_embeddings().weight
    projector = hf_model.model.multi_modal_projector.linear_2
    projector.weight[channels] = 0.0
    for always in (embed[:, ALWAYS], projector.bias[ALWAYS]):
        always.fill_(_LEVEL)
    for answer in (embed[:, ANSWER], projector.bias[ANSWER]):
        answer.fill_(0.0)


def _plant(mlp: Any, shares: Float[Tensor, " n"]) -> None:
    """The first units of an MLP read `ALWAYS` and write their share to `ANSWER`."""
    n = len(shares)
    for linear in (mlp.gate_proj, mlp.up_proj):
        linear.weight[:n] = 0.0
        linear.weight[:n, ALWAYS] = _OPEN
    mlp.down_proj.weight[:, :n] = 0.0
    mlp.down_proj.weight[ANSWER, :n] = _FAINT * shares


def _calibrate(model: HookedVLM, size: Size) -> None:
    """Spreads the logits, and has the answer's exceed the sum of all others."""
    [sample] = random_samples(size, n=1)
    inputs = model.prepare(text=sample.text, images=sample.images)
    head = model.hf_model.lm_head.weight
    head *= _SPREAD / model(inputs)[0, -1].std()
    needed = model(inputs)[0, -1].logsumexp(-1) + _MARGIN
    head[_ANSWER_TOKEN] = 0.0
    head[_ANSWER_TOKEN, ANSWER] = 1.0
    head[_ANSWER_TOKEN, ANSWER] = needed / model(inputs)[0, -1, _ANSWER_TOKEN]


# Its samples ------------------------------------------------------------------------------------


def random_samples(size: Size, *, n: int) -> list[Sample]:
    """Images of noise, each with a prompt of random words; the first ones are always the same."""
    random = np.random.default_rng(0)
    samples = []
    for _ in range(n):
        pixels = random.integers(0, 256, (size.image, size.image, 3), dtype=np.uint8)
        words = random.integers(FIRST_WORD, size.vocabulary, _N_WORDS)
        text = " ".join(f"w{word}" for word in words)
        samples.append(Sample([Image.fromarray(pixels)], text))
    return samples


def build_processor(size: Size) -> LlavaProcessor:
    """For a random model of this size: token 7 is the word "w7"."""
    words = [f"w{word}" for word in range(FIRST_WORD, size.vocabulary)]
    vocabulary = {word: i for i, word in enumerate(_SPECIAL + words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": size.image},
            crop_size={"height": size.image, "width": size.image},
        ),
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>",
            bos_token="<bos>",
            eos_token="<eos>",
            unk_token="<unk>",
            model_specific_special_tokens={"image_token": "<image>"},
        ),
        patch_size=size.patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
