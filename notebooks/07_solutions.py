# %% [markdown]
# # 7. Solutions
#
# One way to solve each exercise of `07_exercises.ipynb`. If yours is another and the check agrees,
# yours is as good.

# %%
import torch
from transformer_lens import patching

from vlm_lens import HookedVLM, NeuronSet, load_samples
from vlm_lens.teaching import Exercises, make_pairs

torch.set_grad_enabled(False)

NAME = "shapes-llava"  # or "llava-hf/llava-1.5-7b-hf": see the end of this notebook
BUNDLED = NAME == "shapes-llava"
model = HookedVLM.from_pretrained(NAME, device="cuda" if torch.cuda.is_available() else "cpu")
exercises = Exercises(model)
inputs, token_map = exercises.inputs, exercises.token_map
_, cache = model.run_with_cache(inputs, names_filter=["*.hook_pattern", "*.mlp.hook_post"])

# %% [markdown]
# ## 1. Where is it?
#
# `box` goes from a position to pixels, `position` the other way.

# %%
exercises.check(1, token_map.position(52, 30))

# %% [markdown]
# ## 2. How much of it is picture?
#
# A pattern is [batch, head, query, key]. The last position is the query, the picture's positions
# are the keys, and what goes to them is a sum.

# %%
in_picture = token_map.positions("image")
exercises.check(2, cache["pattern", 2][0, 3, -1, in_picture].sum())

# %% [markdown]
# ## 3. A hook that blurs
#
# The mean is over patches, axis 1, for each picture and channel. `expand_as` gives it back its
# shape.


# %%
def average(tensor, hook):
    """Every patch becomes the mean of its picture's patches."""
    return tensor.mean(1, keepdim=True).expand_as(tensor)


exercises.check(3, average)

# %% [markdown]
# > **Predict.** Which questions will it still answer: how many objects? is there something red?
# > what color is the square?

# %%
for text in ("how many objects are there ?", "is there a red object ?", exercises.question):
    asked = model.prepare(images=exercises.picture, text=text)
    seeing = model.generate(asked)
    with model.hooks([("projector.hook_out", average)]):
        blurred = model.generate(asked)
    print(f"{text:30} {seeing:6} -> {blurred}")
    assert blurred != seeing or not BUNDLED

# %% [markdown]
# None of them. A blurred picture is not a picture with less detail to this model, but something
# that it has never seen. A change can destroy more than what it was meant to remove.

# %% [markdown]
# ## 4. Neurons for the picture
#
# `from_scores` takes scores by hook name and ranks them.

# %%
name = "blocks.3.mlp.hook_post"
scores = cache.image(name).mean(0) - cache.text(name).mean(0)
exercises.check(4, NeuronSet.from_scores({name: scores}, k=10))

# %% [markdown]
# ## 5. Better than chance?
#
# This is a permutation test without its name. "At least" matters: where all do the same harm, the
# neurons are nothing special, and the share is 1.


# %%
def share_of_controls(harm, neurons, sizes, n):
    """Which share of n random controls does at least as much harm."""
    mine = harm(neurons)
    return sum(harm(neurons.sample_control(sizes, seed=seed)) >= mine for seed in range(n)) / n


exercises.check(5, share_of_controls)

# %% [markdown]
# ## 6. Is the colour in the surroundings?
#
# Count in rows and columns: the position behind the last patch of a row is on the other side of the
# picture.


# %%
def neighbours(token_map, positions, distance):
    """The positions within some patches of the given ones, those included."""
    middles = [token_map.cell(p) for p in positions]
    return {
        p
        for p in token_map.positions("image")
        for row, col in [token_map.cell(p)]
        if any(max(abs(row - r), abs(col - c)) <= distance for r, c in middles)
    }


exercises.check(6, neighbours)

# %% [markdown]
# > **Predict.** The more of the surroundings is cut, the more answers change? How many for the
# > whole picture?


# %%
def changed(sample, distance):
    """Whether the answer changes when words cannot see an object and its surroundings."""
    prompt = model.prepare(images=sample.images, text=sample.text)
    tokens = prompt.token_map[0]
    x0, y0, x1, y1 = sample.annotations["objects"][sample.annotations["about"][0]]["box"]
    boxes = {p: tokens.box(p) for p in tokens.positions("image")}
    seen = [p for p, b in boxes.items() if b[0] < x1 and b[2] > x0 and b[1] < y1 and b[3] > y0]
    keys = sorted(neighbours(tokens, seen, distance))
    queries = torch.tensor(tokens.positions("text"))[:, None]

    def cut(pattern, hook):
        pattern[:, :, queries, keys] = 0
        return pattern

    hooked = model.run_with_hooks(prompt, fwd_hooks=[("blocks.*.attn.hook_pattern", cut)])
    return bool(hooked[0, -1].argmax() != model(prompt)[0, -1].argmax())


samples = [s for s in load_samples("shapes-llava", n=140) if s.category == "color"]
counts = []
for distance in (0, 1, 2, 8):
    counts.append(sum(changed(sample, distance) for sample in samples))
    print(f"{distance} patches around: {counts[-1]} of {len(samples)} answers change")
if BUNDLED:
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]

# %% [markdown]
# Yes, but the steps are small and twenty questions are few: the surroundings know a little. What
# this does not show is that they matter while the object can be seen. Notebook 6 patched the
# background, and nothing moved.
#
# ## 7. Who moves the shape?
#
# TransformerLens' tool for heads does the work; the two kinds of pairs are needed because the head
# with the largest effect on the shape moves the colour as well.


# %%
def moved_by_head(pairs):
    clean = model.prepare(images=pairs.clean, text=pairs.questions)
    corrupted = model.prepare(images=pairs.corrupted, text=pairs.questions)
    clean_logits, clean_cache = model.run_with_cache(clean)
    corrupted_logits = model(corrupted)
    rows = torch.arange(len(pairs.questions))
    right, wrong = clean_logits[:, -1].argmax(-1), corrupted_logits[:, -1].argmax(-1)

    def ahead(logits):
        return logits[rows, -1, right] - logits[rows, -1, wrong]

    def metric(logits):
        way = ahead(clean_logits) - ahead(corrupted_logits)
        return ((ahead(logits) - ahead(corrupted_logits)) / way).mean()

    return patching.get_act_patch_attn_head_out_all_pos(model, corrupted, clean_cache, metric)


shape, color = moved_by_head(make_pairs("shape")), moved_by_head(make_pairs("color"))
best = divmod(int((shape - color).argmax()), model.cfg.n_heads)
print(f"head {best[0]}.{best[1]}: {shape[best]:.2f} of the shape, {color[best]:.2f} of the colour")
exercises.check(7, best)

# %% [markdown]
# ## 8. What follows?
#
# Both claims that follow name their comparison and their range. Choose one of the others in the
# exercises, and the check says what is missing.

# %%
exercises.check(8, {"b", "f"})

# %%
assert exercises.n_right == 8
exercises

# %% [markdown]
# ## The same on a 7B model
#
# Set `NAME = "llava-hf/llava-1.5-7b-hf"` at the top: the solutions are the same, their values
# others. See the end of the exercises for what gets slow.
