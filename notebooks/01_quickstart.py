# %% [markdown]
# # 1. Quickstart: hooks, cache, ablation
#
# A vision-language model looks at a picture, reads a question and answers. From outside you see the
# answer and nothing of how it came about. Inside there are some thousands of numbers for every
# piece of the picture and every word, and each of them is made by a part that has a name.
#
# This notebook does the three things that everything else rests on: **look** at these numbers,
# **find** one that stands for something, and **change** it to see whether the answer needs it.
#
# Before each result there is a question to you. Answer it before you run the cell: being wrong is
# how one learns what a model is *not* like.

# %% [markdown]
# ## A model, a picture, a question
#
# `shapes-llava` comes with the package. It has the same parts as the large LLaVA models (a vision
# encoder, a projector, a language model), is really trained, and answers in milliseconds on any
# laptop. Its world is coloured shapes and handwritten digits.

# %%
import pandas as pd
import torch

from vlm_lens import HookedVLM, NeuronSet, load_samples
from vlm_lens.analyses import direct_effect
from vlm_lens.plots import neuron_over_image, neuron_over_tokens
from vlm_lens.shapes_llava import IMAGES

torch.set_grad_enabled(False)  # nothing is trained here

NAME = "shapes-llava"  # or "llava-hf/llava-1.5-7b-hf": see the end of this notebook
BUNDLED = NAME == "shapes-llava"
model = HookedVLM.from_pretrained(NAME, device="cuda" if torch.cuda.is_available() else "cpu")
model

# %%
sample = load_samples(IMAGES)[3]
picture = sample.images[0]
print(picture.size, sample.text)
picture.resize((256, 256), resample=0)

# %% [markdown]
# `prepare` turns picture and question into what the model reads: a row of *positions*. A word is a
# position (in larger models a piece of a word); the picture is cut into square patches, and each
# patch becomes a position too.
#
# > **Predict.** The picture has 64 × 64 pixels and a patch 8 × 8. How many positions does the
# > picture take? More or fewer than the question?

# %%
inputs = model.prepare(images=picture, text=sample.text)
token_map = inputs.token_map[0]
print(token_map)
print("first patch:", token_map.positions("image")[0], "words:", token_map.positions("text"))
print("answer:", model.generate(inputs))

# %% [markdown]
# The picture takes most of the sequence. That is so in every such model, and it is why "what is
# this position?" is a question worth a tool of its own. `token_map` answers it in both directions:
# from a position to its patch, and from a pixel to its position.

# %%
position = token_map.position(36, 12)  # a pixel of the cyan triangle: x, y
print("position", position, "shows the pixels", token_map.box(position))
token_map.to_dataframe().loc[[0, position, *token_map.positions("text")]]

# %% [markdown]
# ## Look: a hook sees an activation while it is made
#
# A *hook function* gets a tensor and the hook point that it passes. Names are TransformerLens'
# names; what belongs to the vision encoder begins with `vision_encoder.`, and a name may hold `*`.

# %%
shapes = {}


def note(tensor, hook):
    shapes[hook.name] = tuple(tensor.shape)


names = ["vision_encoder.blocks.0.mlp.hook_post", "projector.hook_out", "blocks.*.mlp.hook_post"]

# %% [markdown]
# > **Predict.** The second number of each shape is how many positions there are. Is it the same in
# > the vision encoder, behind the projector and in the language model?

# %%
model.run_with_hooks(inputs, fwd_hooks=[(names, note)])
for name, shape in list(shapes.items())[:3]:
    print(f"{name:40} {shape}")
if BUNDLED:
    assert [shape[1] for shape in shapes.values()][:3] == [65, 64, 73]

# %% [markdown]
# Three different numbers. The encoder has one position more than there are patches (its "class
# token", which stands for the whole picture), the projector only takes the patches, and the
# language model puts the words behind them. The last number of each shape is how many *neurons*
# there are.
#
# The hook saw everything and changed nothing: it returned nothing.

# %% [markdown]
# ## Keep: the cache
#
# Writing a function for each look would be tedious. `run_with_cache` keeps every activation of one
# run, by name.

# %%
logits, cache = model.run_with_cache(inputs)
print(len(cache), "activations")
print(cache["post", 2].shape, "is short for blocks.2.mlp.hook_post:", end=" ")
print(torch.equal(cache["post", 2], cache["blocks.2.mlp.hook_post"]))
print(cache.image(("post", 2)).shape, "at the picture's positions")
print(cache.text(("post", 2)).shape, "at the words' positions")

# %% [markdown]
# ## Find: a neuron that stands for something
#
# A neuron is one column of such a table: one number at each position. Is there one that is active
# on the cyan triangle and not elsewhere in the picture? Let us score each neuron of layer 2 by
#
# $$\frac{\text{its mean over the triangle} - \text{its mean over the rest of the picture}}
# {\text{its standard deviation over the rest}}$$
#
# > **Predict.** Every neuron gets a score, so some neuron gets the best one. How clean will it be?

# %%
LAYER = 2
triangle = {token_map.position(x, y) for x, y in [(36, 5), (30, 12), (36, 12)]}
rest = set(token_map.positions("image")) - triangle
acts = cache["post", LAYER][0]
inside, outside = acts[sorted(triangle)], acts[sorted(rest)]
scores = (inside.mean(0) - outside.mean(0)) / outside.std(0)

found = NeuronSet.from_scores({f"blocks.{LAYER}.mlp.hook_post": scores.cpu()}, k=1)
neuron = found[0]
values = acts[:, neuron.index]
neuron_over_image(picture, token_map.grid_values(values), grid=token_map.grid(), title=str(neuron))

# %%
if BUNDLED:
    words = token_map.positions("text")
    assert token_map.tokens[max(words, key=lambda p: values[p])] == "there"
neuron_over_tokens(token_map.tokens, values)

# %% [markdown]
# Orange is positive, blue negative, and both figures tell their numbers when pointed at. The neuron
# is active on the triangle and nearly nowhere else in this picture, and among the words most of all
# at "there". A lovely neuron. What does it stand for?
#
# ## Doubt: one picture fits many stories
#
# The thing in that picture is *cyan*, it is a *triangle*, and it lies *at the top*. The score
# cannot tell these apart. Other pictures can: the world draws as many as we like, and knows of each
# object its colour, name, place and box.
#
# > **Predict.** Cyan, triangle, or top? Put your money on one.


# %%
rows = []
for other in load_samples("shapes-llava", n=60):
    prompt = model.prepare(images=other.images, text=other.text)
    _, one = model.run_with_cache(prompt, names_filter=neuron.name)
    for thing in other.annotations["objects"]:
        where = prompt.token_map[0].positions_in(thing["box"])
        peak = float(one[neuron.name][0, where, neuron.index].max())
        rows.append({key: thing[key] for key in ("color", "name", "place")} | {"peak": peak})
objects = pd.DataFrame(rows)
means = pd.concat(
    {key: objects.groupby(key)["peak"].mean() for key in ("color", "name", "place")}
).sort_values(ascending=False)
print(len(objects), "objects; the neuron's mean peak on them, by what they are:")
means.round(2).head(8)

# %%
if BUNDLED:
    by_place = means["place"]
    assert by_place.idxmax() == "top"
    assert by_place["top"] > 2 * by_place.drop("top").max()
    assert by_place["top"] > 2 * max(means["color"]["cyan"], means["name"]["triangle"])

# %% [markdown]
# *Top.* The neuron hardly cares what the thing is; it cares where it is. Had we stopped at the
# figure, we would have written "cyan triangle neuron" into our notes.
#
# **What this still does not show.** That "top" is the right word (only a few objects of each kind
# were looked at, and nothing but the world's own words were tried), and that the model *uses* the
# neuron. Notebook 5 tests explanations where they could fail. For use, one has to change something.

# %% [markdown]
# ## Change: a hook that returns something
#
# What a hook function returns takes the activation's place, and the model goes on with it. The
# crudest change blinds the model: everything that leaves the projector becomes zero.
#
# > **Predict.** A model without eyes is asked how many objects there are. Will it refuse?


# %%
def silence(tensor, hook):
    return tensor * 0


question = model.prepare(images=picture, text="how many objects are there ?")
print("seeing:", model.generate(question))
with model.hooks([("projector.hook_out", silence)]):
    print("blind: ", model.generate(question))
print("after: ", model.generate(question))

# %% [markdown]
# It answers, with a straight face. Keep this in mind whenever an answer is right: it may not come
# from the picture. After the `with` block the hook is gone.
#
# ## Ablate: does the answer need these neurons?
#
# Back to the first question, *is there a cyan 3 ?*. We measure how sure the model is by the
# *margin*, the difference between the logits of its answer and of the runner-up:
#
# $$m = \ell_\text{answer} - \ell_\text{runner-up}$$
#
# `direct_effect` says how much each neuron of the language model adds to the answer's logit at the
# last position. We set the best ones to zero, and as a **control** just as many others, drawn at
# random from the same layers.

# %%
answer, runner_up = logits[0, -1].topk(2).indices
print("answer:", model.to_single_str_token(int(answer)))
print("runner-up:", model.to_single_str_token(int(runner_up)))


def margin(fwd_hooks=()):
    """How far the answer is ahead, in logits, with these hooks."""
    last = model.run_with_hooks(inputs, fwd_hooks=list(fwd_hooks))[0, -1]
    return float(last[answer] - last[runner_up])


effect = direct_effect(model, inputs)
best = effect.top(200)
print(f"margin {margin():.2f}")
effect.to_dataframe(5)

# %% [markdown]
# > **Predict.** There are 2,304 neurons in the language model. By how much does the margin fall
# > without the single best one? How many does it take until the answer changes? And how many
# > random ones?

# %%
print("neurons   margin without the best   without as many at random")
margins = {}
for k in (0, 1, 5, 20, 60, 120, 200):
    control = best[:k].sample_control(cache.sizes)
    margins[k] = margin(best[:k].ablate()), margin(control.ablate())
    print(f"{k:7} {margins[k][0]:16.2f} {margins[k][1]:22.2f}")
if BUNDLED:
    assert margins[1][0] > 0.8 * margins[0][0]  # one neuron hardly matters
    assert margins[60][0] < 0 < 0.8 * margins[0][0] < margins[200][1]

# %% [markdown]
# One neuron hardly matters. Sixty together turn the answer over: the margin is negative, and the
# model sees a cyan 3 that is not there. Two hundred random ones of the same layers do not: without
# that column, the first would be worth little.

# %%
print("without the best 60:", end=" ")
with model.hooks(best[:60].ablate()):
    print(model.generate(inputs))
print("without 60 others:", end=" ")
with model.hooks(best[:60].sample_control(cache.sizes).ablate()):
    print(model.generate(inputs))

# %% [markdown]
# > **Predict.** Is this always so? The package has five more questions about pictures. In how many
# > of the six does the answer change without its best sixty neurons?

# %%
changed = 0
for other in load_samples(IMAGES):
    prompt = model.prepare(images=other.images, text=other.text)
    before = model.generate(prompt)
    with model.hooks(direct_effect(model, prompt).top(60).ablate()):
        after = model.generate(prompt)
    changed += before != after
    print(f"{other.text:45} {before:8} -> {after}")
print(changed, "of 6 changed")
if BUNDLED:
    assert changed == 2

# %% [markdown]
# In most of them it does not change. We had started with the question where it does, which is what
# a single example always invites.
#
# ## What this does not show
#
# - **That these sixty neurons are "the cyan neurons".** They were chosen by what they add to *this*
#   word at *this* position. They may be the end of a path that began anywhere.
# - **That the others do nothing.** An effect through later layers is no direct effect, and a
#   network can make up for a loss.
# - **What zero means.** Zero is not "off" for a neuron that is usually at 5; a mean is a milder
#   choice (`ablate("mean", reference=cache)`).
#
# Notebook 3 asks all of this in earnest.
#
# ## The same on a 7B model
#
# Set `NAME = "llava-hf/llava-1.5-7b-hf"` at the top (a download of 14 GB; a GPU with 16 GB or
# more). What changes:
#
# - the picture takes 576 positions (24 × 24 patches), and words are pieces of words;
# - there are 32 layers of 11,008 neurons: sixty are a far smaller share, so expect to need more;
# - keeping everything of one run takes gigabytes: say what to keep, as in
#   `run_with_cache(inputs, names_filter="blocks.2.mlp.hook_post")`;
# - it answers in sentences ("No, there is no cyan 3"), so compare logits rather than texts.
