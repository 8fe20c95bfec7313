"""Data sets as lists of samples: the bundled world, folders of images, Hugging Face data sets."""

from vlm_lens.data.imagefolder import load_imagefolder
from vlm_lens.data.load import load_samples
from vlm_lens.data.sample import Sample

__all__ = ["Sample", "load_imagefolder", "load_samples"]
