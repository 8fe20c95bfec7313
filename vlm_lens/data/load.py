"""Loading samples by name: the bundled world, a folder of images, or a Hugging Face data set."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from vlm_lens.by_name import is_folder
from vlm_lens.data import austen
from vlm_lens.data.hub import load_hub
from vlm_lens.data.imagefolder import load_imagefolder
from vlm_lens.data.sample import Sample, check_count

WORLDS = {
    "shapes-llava": "vlm_lens.shapes_llava.world",
    "shapes-smollm2": "vlm_lens.shapes_smollm2.world",
}
"""Where `make_samples` is that draws the samples of a bundled model's world."""


def load_samples(
    name: str | Path, *, split: str = "test", task: str = "image", n: int = 200, seed: int = 0
) -> list[Sample]:
    """Loads up to `n` samples.

    Args:
        name: one of
            - "shapes-llava": the world of the bundled model, drawn on demand;
            - "shapes-smollm2": the same world in plain English;
            - "austen": passages of English text without images (see `vlm_lens.data.austen`);
            - the path of a folder with images and a `metadata.jsonl` (see `load_imagefolder`);
            - the name of a Hugging Face data set, streamed with `datasets` (see `load_hub`).
        split: "train", "val" or "test" for the world, "train" or "test" for "austen", any split
            name for a Hugging Face data set; a folder has no splits and ignores it.
        task: for the worlds only: "image" (questions about images), "caption" (descriptions of
            images) or "text" (questions about scenes told in words, without images).
        n: how many samples; folders and data sets may hold fewer.
        seed: which samples of the world; a folder and a data set are read from their beginning.

    Returns:
        The samples. The same arguments give the same samples.

    Raises:
        TypeError: when `name` is no name or `n` no whole number.
        ValueError: when `n` is less than 1, `split` or `task` is unknown to the world, or the
            entries of a folder or data set are not as expected.
        FileNotFoundError: when `name` is a path of a folder that is not there or lacks a file.
        ConnectionError: when there is no such folder, and the hub cannot be reached.
        ImportError: when a Hugging Face data set is asked for and `datasets` is not installed.

    Example:
        >>> sample = load_samples("shapes-llava", task="text", n=1)[0]
        >>> sample.images, sample.text.startswith("scene : a ")
        ([], True)
    """
    check_count("n", n)
    if not isinstance(name, str | Path) or not str(name):
        raise TypeError(f"expected the name or folder of a data set, got {name!r}")
    if name in WORLDS:
        # Only the worlds need scikit-learn, whose import takes most of a second.
        make_samples = import_module(WORLDS[str(name)]).make_samples
        return make_samples(split=split, task=task, n=n, seed=seed)
    if name == austen.NAME:
        return austen.load_passages(split=split, n=n)
    if is_folder(name):
        return load_imagefolder(Path(name), n=n)
    return load_hub(str(name), split=split, n=n)
