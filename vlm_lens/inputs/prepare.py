"""Turn images and texts into the inputs of a model."""

import math
from collections.abc import Sequence
from typing import Any

from PIL import Image
from transformers import LlavaConfig, LlavaProcessor

from vlm_lens.inputs.batch import Inputs
from vlm_lens.inputs.encode import check_length, collate, encode, n_class_tokens, token_maps
from vlm_lens.inputs.geometry import PatchGrid, pixel_transform
from vlm_lens.inputs.images import ImageSource, load_image
from vlm_lens.inputs.prompts import Prompt, render_prompt
from vlm_lens.inputs.samples import Images, split_samples

# CLIP's processors resize the short edge first and crop then: an image of 10000 x 1 pixels would
# take gigabytes in between.
_MAX_RESIZED_PIXELS = 100_000_000


def prepare(
    processor: LlavaProcessor,
    config: LlavaConfig,
    *,
    images: Images | Sequence[Images] = None,
    text: Prompt | Sequence[Prompt],
    answer: str | Sequence[str] | None = None,
) -> Inputs:
    """Prepares images and texts for a model, and maps its positions to the images' pixels.

    Args:
        processor: The model's processor. Neither it nor its tokenizer is changed.
        config: The model's config.
        images: For one text: None, an image or a list of images. For a list of texts: None or a
            list with one such entry per text. See `load_image` for what an image can be.
        text: A text or chat messages (dicts with "role" and "content"), or a list of these.
            A text that holds the processor's image token, or another special token, is used as it
            is; any other one goes through the chat template, images first. Without a template, the
            placeholders and a newline are put in front.
        answer: A text per prompt to put behind it, for teacher forcing. It is tokenized by itself,
            so that the prompt's tokens are the same with and without it.

    Returns:
        The inputs, on the CPU, padded on the left.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: The processor does not fit the model, the numbers of texts, answers, images and
            placeholders do not fit each other, a text is empty, or a prompt is longer than the
            model's context.
        OSError: An image file does not exist; see `load_image`.

    Example:
        >>> from PIL import Image
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import CLIPImageProcessorPil, CLIPVisionConfig
        >>> from transformers import PreTrainedTokenizerFast
        >>> words = ["<pad>", "<image>", "what", "color", "?"]
        >>> vocabulary = {word: i for i, word in enumerate(words)}
        >>> backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
        >>> backend.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> processor = LlavaProcessor(
        ...     image_processor=CLIPImageProcessorPil(),
        ...     tokenizer=PreTrainedTokenizerFast(
        ...         tokenizer_object=backend,
        ...         pad_token="<pad>",
        ...         extra_special_tokens={"image_token": "<image>"},
        ...     ),
        ...     patch_size=32,
        ...     vision_feature_select_strategy="default",
        ...     num_additional_image_tokens=1,
        ... )
        >>> config = LlavaConfig(image_token_id=1, vision_config=CLIPVisionConfig())
        >>> picture = Image.new("RGB", (640, 480))
        >>> inputs = prepare(processor, config, images=picture, text="what color ?")
        >>> inputs
        Inputs(1 sample(s) of 52 positions, 1 image(s): input_ids [1, 52], attention_mask [1, 52], \
pixel_values [1, 3, 224, 224], on cpu)
        >>> inputs.token_map
        [TokenMap(52 positions: 49 image (7x7), 3 text)]
        >>> inputs.token_map[0].positions("text")
        [49, 50, 51]
    """
    check_processor(processor, config)
    raw, batched = split_samples(images, text, answer, image_token=processor.image_token)
    texts = [
        render_prompt(processor, sample.prompt, n_images=len(sample.sources), sample=i)
        for i, sample in enumerate(raw)
    ]
    pictures = [
        [_load(source, image=j, sample=i) for j, source in enumerate(sample.sources)]
        for i, sample in enumerate(raw)
    ]
    grids = [[_grid(picture, processor) for picture in entry] for entry in pictures]
    answers = [sample.answer for sample in raw]
    rows = zip(texts, answers, pictures, grids, strict=True)
    samples = [encode(processor, *row) for row in rows]
    for i, sample in enumerate(samples):
        check_length(sample, config, index=i)
    return Inputs(
        tensors=collate(samples, processor.tokenizer),
        token_map=token_maps(samples, processor),
        images=pictures,
        texts=texts,
        batched=batched,
        tokenizer=processor.tokenizer,
        image_token_id=config.image_token_id,
    )


def check_processor(processor: LlavaProcessor, config: LlavaConfig) -> None:
    """Checks that a processor makes what a model expects.

    Raises:
        TypeError: It has no image processor or no tokenizer.
        ValueError: Its settings differ from the model's config.
    """
    for part in ("image_processor", "tokenizer"):
        if getattr(processor, part, None) is None:
            raise TypeError(
                f"expected a processor with an image processor and a tokenizer, but "
                f"{type(processor).__name__} has no {part}: load it with AutoProcessor"
            )
    vision_config: Any = config.vision_config
    settings = {
        "image_token_id": config.image_token_id,
        "patch_size": vision_config.patch_size,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
    }
    for name, expected in settings.items():
        if getattr(processor, name) != expected:
            raise ValueError(
                f"the processor's {name} is {getattr(processor, name)!r}, but the model's is "
                f"{expected!r}: use the model's own processor, or set processor.{name}"
            )
    if n_class_tokens(processor) < 0:
        raise ValueError(
            "the processor drops a class token (vision_feature_select_strategy='default') that it "
            "does not count: set processor.num_additional_image_tokens=1"
        )


def _load(source: ImageSource, *, image: int, sample: int) -> Image.Image:
    try:
        return load_image(source)
    except (OSError, TypeError, ValueError) as error:
        error.add_note(f"This is image {image} of sample {sample}.")
        raise


def _grid(picture: Image.Image, processor: Any) -> PatchGrid:
    transform = pixel_transform(picture.size, processor.image_processor)
    if math.prod(transform.resized_size) > _MAX_RESIZED_PIXELS:
        width, height = transform.resized_size
        raise ValueError(
            f"an image of {picture.width}x{picture.height} pixels is too long and narrow: the "
            f"image processor would enlarge it to {width}x{height} before cropping it: crop it"
        )
    return PatchGrid(transform, processor.patch_size)
