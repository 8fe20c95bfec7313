# %% [markdown]
# # 3. Finding critical neurons, and doubting them
#
# How fragile is a vision-language model? Two papers give an answer that is hard to forget: *a
# handful of neurons, and it is gone.*
#
# - **CAN** (arXiv 2512.00918): LLaVA-1.5-7B collapses without as few as **four** neurons, in **two
#   stages**: first the answers degrade, then, suddenly, nothing sensible is left. The neurons sit
#   in the language model, most of all in its down projections.
# - **PCICN** (arXiv 2510.10238): language models of 0.5 to 72 billion parameters need **3 to 45**.
#
# If that is so, one should know these neurons: to protect them, to prune all others, to understand
# what carries a model. This notebook looks for them in the bundled model, and then does what takes
# longer than finding something: it tries to be unimpressed.
#
# > **Predict.** Write it down now: how many of the bundled model's channels have to go until it no
# > longer describes pictures? Does it break in two stages? And which part of it is the weakest?

# %%
import pandas as pd
import plotly.express as px
import torch

from vlm_lens import HookedVLM, load_samples
from vlm_lens.analyses import can, pcicn
from vlm_lens.masking import similarity, word_overlap
from vlm_lens.neurons.controls import random_neurons

torch.set_grad_enabled(False)  # CAN switches gradients on where it needs them
px.defaults.template = "plotly_white"

NAME = "shapes-llava"  # or "llava-hf/llava-1.5-7b-hf": see the end of this notebook
BUNDLED = NAME == "shapes-llava"
model = HookedVLM.from_pretrained(NAME, device="cuda" if torch.cuda.is_available() else "cpu")

# %% [markdown]
# As in the paper, there is one prompt and many pictures, and what counts is what the model itself
# says when nothing is wrong with it: its *clean* answer. Nobody has to annotate anything. (To keep
# this short, answers end after twenty tokens.)

# %%
samples = load_samples("shapes-llava", task="caption", n=16)
inputs = model.prepare(images=[s.images for s in samples], text=[s.text for s in samples])
clean = model.generate(inputs, max_new_tokens=20)
print(samples[0].text)
for answer in clean[:3]:
    print("  ", answer)

# %% [markdown]
# ## Find: a score for each channel
#
# Taking out every neuron one by one would need thousands of runs, millions in a large model. So one
# needs a guess that costs little. CAN's is
#
# $$I = \frac{1}{M} \sum_{i=1}^{M} \left|\frac{\partial L}{\partial a}\right|^{\alpha} |a|$$
#
# a channel is important if it is **active** (large $|a|$) and the loss $L$ **depends on it** (large
# gradient). $\alpha$ says how much the second counts. A "neuron" is here one output channel of a
# linear layer, and taking it out means that it is 0 at every position.

# %%
scores = can.score(model, samples)
scores

# %% [markdown]
# > **Predict.** The ten best are all in the projector. In the paper nearly all critical neurons are
# > in the language model. Which of the two will the list look like further down?
#
# ## Search: how many does it take?
#
# `find_critical` takes out the best 1, 2, 4, 8, ... channels until the model has collapsed, and
# then halves the interval. What is a collapse? The paper's two thresholds cannot be read anywhere.
# Ours, both of which must be met:
#
# - the **perplexity** of the clean answer, the inverse of the probability per token, is up tenfold;
# - the new answer shares at most 30% of its **words** with the clean one.

# %%
found = can.find_critical(
    model, samples, scores, max_k=512, metrics=[similarity()], also_at=[10, 16, 64, 256], probes=0
)
print(found.summary())
print("stages:", found.stages.rule)
found.table().query("k in [0, 1, 4, 10, 16, 32, 64, 128, 256, @found.k]").round(2)

# %%
found.plot()

# %%
if BUNDLED:
    curve = found.table().set_index("k")
    assert 300 < found.k < 450
    assert found.stages.onset == 1
    assert curve.loc[[4, 10], "similarity"].min() > 0.85
    assert found.neurons.count_by("component")["projector"] > 0.5 * found.k

# %% [markdown]
# Without four channels, or ten, the answers keep nine words of ten. It takes **382**.
#
# And yet it is not nothing: without the *single* best channel only 25% of the answers are the same
# to the letter (`agreement`). Both are true. What you report is a choice, and it is made when you
# choose the metric.
#
# ## Read: what the numbers are about
#
# Always look at the texts. `k` is the number of channels that are gone.

# %%
found.gallery(n=3, ks=[0, 1, 16, 64, 256, found.k or 512])

# %% [markdown]
# > **Predict.** Without 256 channels it still writes whole sentences about colours, shapes and
# > places. Are they still about *this picture*? What would `similarity` be for a perfectly good
# > sentence about another picture?

# %%
others = clean[1:] + clean[:1]
by_chance = sum(word_overlap(clean, others)) / len(clean)
print(f"clean answers about other pictures: {by_chance:.2f}")
print(f"answers without 256 channels:       {found.table().set_index('k').similarity[256]:.2f}")

# %%
if BUNDLED:
    assert curve.loc[256, "similarity"] < by_chance < curve.loc[64, "similarity"]
    assert not curve.loc[256, "collapsed"]

# %% [markdown]
# A sentence about the wrong picture shares more of its words than what is left without 256
# channels. By then the picture is lost, and little more than grammar remains. But "collapse", as
# defined above, comes more than a hundred channels later. The threshold of 30% was ours, it looked
# sensible, and it was blind to this. **A metric needs a floor**: what does somebody get who knows
# nothing?
#
# ## Two stages?
#
# The figure has two marks, and the table says "degradation" and "collapse". So, two stages?
#
# No: any curve that falls crosses two lines, one after the other, *because we drew two lines*. The
# paper's claim is about what lies between: a plateau, then a cliff. Here the answers lose words
# gradually, all the way; the worst you can say is that the curve is not smooth.
#
# ## Where they sit

# %%
found.where()

# %%
print(found.neurons.count_by("component"))
found.histogram("component")

# %% [markdown]
# The projector has 256 of the 8,192 channels, and more than half of those that are critical here;
# the language model, where the paper found nearly all, has the fewest. That is easily understood
# *for this model*: all that it knows of a picture goes through a door 128 channels wide.
# LLaVA-1.5-7B has 4,096.
#
# Another difference: large language models keep a few huge values, *massive activations*, thousands
# of times the usual size, most of them at the first token. Without these they break at once, and a
# search such as CAN's is bound to find them. Are there any here?

# %%
_, streams = model.run_with_cache(inputs, names_filter="blocks.*.hook_resid_post")
sizes = [float(stream.abs().max() / stream.abs().median()) for stream in streams.values()]
print(f"the largest value of the residual stream is {max(sizes):.0f} times the median one")
if BUNDLED:
    assert max(sizes) < 100

# %% [markdown]
# None. **What this does not show**, then, is that the paper is wrong about LLaVA-1.5-7B, which has
# them. It shows that the claim is no law of such models.
#
# ## Doubt 1: are these channels special?
#
# Taking out *any* 382 channels of these layers might do the same. A search that returns a number
# says nothing before one knows what the same search returns for channels that mean nothing. The
# controls have at each rank a channel of the same layer, drawn at random.
#
# > **Predict.** How much better than chance is CAN's ranking? And how much of that does it owe to
# > the gradient: what if one ranks by $|a|$ alone ($\alpha = 0$, no backward pass needed)?

# %%
KS = [0, 1, 4, 16, 64, 256, 384, 512]


def kept(hooks):
    """The share of words that answers still share with the clean ones."""
    with model.hooks(hooks):
        answers = model.generate(inputs, max_new_tokens=20)
    return sum(word_overlap(answers, clean)) / len(clean)


ranking = scores.ranking(512)
rankings = {"CAN": ranking, "activation only": can.score(model, samples, alpha=0).ranking(512)}
rankings |= {
    f"random {seed}": random_neurons(ranking, seed=seed, avoid="never") for seed in range(2)
}
curves = pd.DataFrame(
    {name: [kept(r[:k].ablate()) for k in KS] for name, r in rankings.items()},
    index=pd.Index(KS, name="channels set to 0"),
)
curves.round(2)

# %%
figure = px.line(
    curves.reset_index().melt("channels set to 0", var_name="ranking", value_name="words kept"),
    x="channels set to 0",
    y="words kept",
    color="ranking",
    markers=True,
    color_discrete_sequence=["#D55E00", "#0072B2", "#999999", "#666666"],
    title="Any ranking empties the answers; CAN's is a little faster at first",
)
figure.update_yaxes(range=[0, 1.03])
figure.add_hline(by_chance, line_dash="dot", annotation_text="another picture's answer")

# %%
if BUNDLED:
    at_random = curves[[name for name in curves if name.startswith("random")]]
    assert curves.loc[256, "CAN"] < at_random.loc[256].min()
    assert curves.loc[384, "CAN"] > at_random.loc[384].min()
    assert curves.loc[512, "activation only"] < curves.loc[512, "CAN"]

# %% [markdown]
# Up to 256 channels CAN's are mostly worse to lose than random ones: it does find something. At 384
# and beyond, where the collapse was "found", random channels do as much harm, and so do those that
# are merely active. The 382 are not *the critical neurons*. They are one of very many ways to take
# away most of a projector.
#
# ## Doubt 2: what is "off"?
#
# Zero is one value among others. For a channel that is always near 5, zero is a shock that it never
# gives in life, and what follows may break because of the shock. A milder choice is the channel's
# mean over the data, which takes its *information* away and leaves the rest as it is used to.
#
# > **Predict.** With the mean in place of zero, do the answers hold out longer?

# %%
_, cache = model.run_with_cache(inputs, names_filter=list(scores))
means = pd.DataFrame(
    {
        "CAN, zero": curves["CAN"],
        "CAN, mean": [kept(ranking[:k].ablate("mean", reference=cache)) for k in KS],
        "random 0, zero": curves["random 0"],
        "random 0, mean": [
            kept(rankings["random 0"][:k].ablate("mean", reference=cache)) for k in KS
        ],
    }
)
means.round(2)

# %%
if BUNDLED:
    assert means.loc[4, "CAN, mean"] < 0.65 < 0.85 < means.loc[4, "CAN, zero"]
    assert means.loc[64, "CAN, mean"] < 0.3
    assert means.loc[16, "CAN, mean"] < by_chance < 0.9 < means.loc[16, "random 0, mean"]

# %% [markdown]
# The opposite! Set to their means, four channels of CAN's do what takes more than a hundred at
# zero, and sixteen lose the picture; our threshold of 30% is passed before 64. As many random
# channels do nothing of the kind. So the ranking *does* know something, which the usual ablation
# hid. And "how many neurons does it take?" has no answer before it is said what they are set to.
#
# Why would the mean do more harm? A guess: most patches show background, so the mean of a channel
# that tells objects from background says "background". Set to it, objects are painted over.
#
# ## Doubt 3: other pictures
#
# > **Predict.** The same search on half of the pictures. How far apart will the two numbers be?

# %%
few = samples[:8]
fewer = can.find_critical(model, few, can.score(model, few), max_k=1024, probes=0)
print(f"on sixteen pictures k* = {found.k}, on the first eight of them k* = {fewer.k}")
for name, half in {"the first eight": few, "the last eight": samples[8:]}.items():
    shared = can.score(model, half).top(50) & ranking[:50]
    print(f"of the best 50 channels, {len(shared)} are among the best 50 on {name}")

# %%
if BUNDLED:
    assert fewer.k > 1.3 * found.k

# %% [markdown]
# The rankings agree roughly, the number does not: with half of the pictures it nearly doubles.
# Report a range over samples, never a single $k^*$. (The curves go up and down, too: `is_monotone`
# says whether the search saw that. Only `exhaustive=True` tries every $k$.)
#
# ## The other method: PCICN
#
# PCICN needs no gradient. It adds strong noise to the embeddings of one prompt, and ranks channels
# by how far that moves them: what reacts most to a disturbance is thought to carry most. It looks
# at the language model only.
#
# > **Predict.** The paper reports 3 to 45 neurons until perplexity is up tenfold, on one text. What
# > will be left of this model without 45?

# %%
noisy = pcicn.score(model, samples[0], n_noisy=40)
fragile = pcicn.find_critical(model, samples[0], noisy, max_k=1024, also_at=[45], probes=0)
print(fragile.summary())
for k in (3, 45, 256, 512):
    ratio = {m.k: m.metrics["perplexity_ratio"] for m in fragile.curve}.get(k)
    if ratio is not None:
        print(f"without {k:4}: perplexity x {ratio:.2f}")
print("the first 100 entries of its list are", noisy.n_neurons(100), "channels")

# %%
if BUNDLED:
    assert fragile.k is None or fragile.k > 400
    assert {m.k: m.metrics["perplexity_ratio"] for m in fragile.curve}[45] < 1.01

# %% [markdown]
# Nothing happens without 45. Note the last line: PCICN ranks *entries*, a channel at a position,
# and its authors' code counts these although it masks the whole channel. Several entries can be the
# same channel, so "3 neurons" may be fewer. Ask of every count what was counted.
#
# ## What you have seen
#
# | the claim | on this model |
# | --- | --- |
# | a handful of neurons | hundreds set to zero, some tens set to their means |
# | two stages | two lines; in between a gradual loss |
# | in the language model | in the projector |
# | the ranking finds them | by their means, yes; by zero, not where it collapses |
# | a number $k^*$ | nearly doubles with half of the pictures |
#
# **What it does not show:** anything about a larger model. The tables of
# `vlm_lens.analyses.critical_tables` do all of this in one call each (`by_component`, `by_matrix`,
# `against_baselines`, `against_artefacts`), and `vlm-lens can --controls` from the command line.
# The package's README has them with more samples.
#
# ## The same on a 7B model
#
# Set `NAME = "llava-hf/llava-1.5-7b-hf"` at the top (a download of 14 GB; a GPU with 24 GB, since
# CAN needs gradients). What changes:
#
# - take photographs of your own (`load_samples("path/to/folder")`) and a prompt that asks to
#   describe them;
# - 32 layers: there are hundreds of thousands of channels, and `max_k=5000` is the default;
# - massive activations sit at the first token. Run with `first_token=False` too: if the collapse
#   goes away, you have found those;
# - in half precision, repeat it in float32: activations near the largest number that there is may
#   overflow, which looks just like a collapse.
