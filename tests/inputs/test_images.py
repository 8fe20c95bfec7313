"""Every source and every odd image loads as upright RGB, every bad one gives one clear error."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vlm_lens.inputs import load_image


def _pixel(image: Image.Image, x: int = 0, y: int = 0) -> tuple[int, ...]:
    pixel = image.getpixel((x, y))
    assert isinstance(pixel, tuple)
    return pixel


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_path_and_str_give_the_pixels_of_the_file(photo: Path):
    expected = np.asarray(Image.open(photo))
    assert np.array_equal(np.asarray(load_image(photo)), expected)
    assert np.array_equal(np.asarray(load_image(str(photo))), expected)


def test_result_is_a_new_image():
    source = Image.new("RGB", (4, 4), "red")
    load_image(source).paste((0, 0, 0), (0, 0, 4, 4))
    assert _pixel(source) == (255, 0, 0)


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "LAB", "RGBX", "PA", "I", "F", "I;16", "I;16B"]
)
def test_every_mode_becomes_rgb(mode: str):
    loaded = load_image(Image.new(mode, (5, 3)))
    assert (loaded.mode, loaded.size) == ("RGB", (5, 3))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa"])
def test_transparent_pixels_become_white(mode: str):
    assert _pixel(load_image(Image.new(mode, (2, 2)))) == (255, 255, 255)


def test_half_transparent_pixels_are_mixed_with_white():
    assert _pixel(load_image(Image.new("RGBA", (2, 2), (255, 0, 0, 127)))) == (255, 128, 128)


def test_palette_with_transparency(tmp_path: Path):
    image = Image.new("P", (2, 1), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "palette.png", transparency=1)
    loaded = load_image(tmp_path / "palette.png")
    assert [_pixel(loaded, 0), _pixel(loaded, 1)] == [(255, 0, 0), (255, 255, 255)]


def test_cmyk_jpeg_keeps_its_colors(tmp_path: Path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "red.jpg")
    red, green, blue = _pixel(load_image(tmp_path / "red.jpg"))
    assert red > 240
    assert max(green, blue) < 15


def test_16_bit_file_is_scaled_not_clipped(tmp_path: Path):
    values = np.array([[0, 256, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    loaded = np.asarray(load_image(tmp_path / "deep.png"))
    assert loaded[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([0, 128, 255], np.int32, [0, 128, 255]),
        ([0, 32768, 65535], np.int32, [0, 128, 255]),
        ([-100, 0, 100], np.int32, [0, 128, 255]),
        ([0, 50000, 100000], np.int32, [0, 128, 255]),
        ([0.0, 0.5, 1.0], np.float32, [0, 128, 255]),
        ([0.0, 100.0, 255.0], np.float32, [0, 100, 255]),
        ([0.0, 32768.0, 65535.0], np.float32, [0, 128, 255]),
        ([-1.0, 0.0, 1.0], np.float32, [0, 128, 255]),
        ([-7.0, -7.0, -7.0], np.float32, [0, 0, 0]),
    ],
)
def test_32_bit_grey_is_scaled_by_the_level_its_values_suggest(values, dtype, expected):
    loaded = np.asarray(load_image(Image.fromarray(np.array([values], dtype=dtype))))
    assert loaded[0, :, 0].tolist() == expected


def test_exif_rotation_is_applied(tmp_path: Path):
    image = Image.new("RGB", (20, 10), "white")
    image.paste((255, 0, 0), (0, 0, 5, 5))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees to the right
    image.save(tmp_path / "turned.png", exif=exif)
    loaded = load_image(tmp_path / "turned.png")
    assert loaded.size == (10, 20)
    assert _pixel(loaded, 9, 0) == (255, 0, 0)
    assert _pixel(loaded, 0, 0) == (255, 255, 255)


def test_animation_gives_its_first_frame(tmp_path: Path):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert _pixel(load_image(tmp_path / "moving.gif")) == (255, 0, 0)


@pytest.mark.parametrize("size", [(1, 1), (3000, 2), (1, 500)])
def test_extreme_sizes(size: tuple[int, int]):
    assert load_image(Image.new("RGB", size)).size == size


@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 1), (6, 8, 3), (6, 8, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
def test_arrays(shape: tuple[int, ...], dtype: type):
    full = 255 if dtype is np.uint8 else 1
    loaded = load_image(np.full(shape, full, dtype=dtype))
    assert (loaded.mode, loaded.size, _pixel(loaded)) == ("RGB", (8, 6), (255, 255, 255))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_float_tensors(dtype: torch.dtype):
    tensor = torch.zeros(3, 6, 8, dtype=dtype, requires_grad=True)
    assert load_image(tensor).size == (8, 6)


def test_tensor_layouts_agree():
    pixels = torch.randint(0, 256, (6, 8, 3), dtype=torch.uint8)
    last, first = load_image(pixels), load_image(pixels.permute(2, 0, 1))
    assert np.array_equal(np.asarray(last), pixels.numpy())
    assert np.array_equal(np.asarray(first), pixels.numpy())
    assert load_image(pixels[:, :, 0]).size == (8, 6)


def test_rounding_beyond_the_range_is_no_error():
    assert _pixel(load_image(np.full((2, 2), 1.00001))) == (255, 255, 255)


def test_missing_path_names_it(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png' does not exist: check the path"):
        load_image(tmp_path / "nowhere.png")


def test_directory(tmp_path: Path):
    with pytest.raises(IsADirectoryError, match="is a directory: pass the path of one file"):
        load_image(tmp_path)


def test_empty_file(tmp_path: Path):
    (tmp_path / "empty.png").touch()
    with pytest.raises(ValueError, match=r"empty\.png' is empty \(0 bytes\)"):
        load_image(tmp_path / "empty.png")


def test_file_that_is_no_image(tmp_path: Path):
    (tmp_path / "notes.png").write_text("not a picture")
    with pytest.raises(ValueError, match=r"recognises no image format in .*notes\.png"):
        load_image(tmp_path / "notes.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tiff", "webp"])
def test_truncated_file_is_found_before_any_work(photo: Path, suffix: str):
    whole = photo.with_suffix(f".whole.{suffix}")
    Image.open(photo).save(whole)
    cut = photo.with_suffix(f".cut.{suffix}")
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    with pytest.raises(ValueError, match=r"cut short|recognises no image format"):
        load_image(cut)


def test_truncated_pil_image(photo: Path):
    photo.write_bytes(photo.read_bytes()[:2000])
    with pytest.raises(ValueError, match="the PIL image cannot be decoded .*cut short"):
        load_image(Image.open(photo))


@pytest.mark.parametrize(
    "url", ["https://example.org/cat.png", "file:///cat.png", "data:image/png;base64,AAAA"]
)
def test_urls_are_not_fetched(url: str):
    with pytest.raises(ValueError, match="got the URL .* download it first, nothing is fetched"):
        load_image(url)


def test_url_in_a_path_object():
    with pytest.raises(ValueError, match="download it first"):
        load_image(Path("https://example.org/cat.png"))


@pytest.mark.parametrize("shape", [(5,), (2, 6, 8, 3), (3, 6, 8), (6, 8, 2), (0, 8, 3), (6, 0)])
def test_array_of_another_shape(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"expected one image of shape .*got an array of shape"):
        load_image(np.zeros(shape, dtype=np.uint8))


def test_tensor_of_another_shape():
    with pytest.raises(
        ValueError, match=r"got a tensor of shape \(2, 3, 6, 8\): pass the images of a"
    ):
        load_image(torch.zeros(2, 3, 6, 8))


@pytest.mark.parametrize("dtype", [np.uint16, np.int64, bool])
def test_array_of_another_dtype(dtype: type):
    with pytest.raises(TypeError, match=r"expected pixels as uint8 .* got (uint16|int64|bool)"):
        load_image(np.zeros((6, 8), dtype=dtype))


@pytest.mark.parametrize("value", [-0.5, 255.0, float("nan"), float("inf")])
def test_floats_out_of_range(value: float):
    with pytest.raises(ValueError, match=r"float pixels in \[0, 1\], got values from .*by 255"):
        load_image(np.full((6, 8, 3), value))


def test_float_image_with_nan():
    with pytest.raises(ValueError, match="the PIL image has NaN or infinity"):
        load_image(Image.fromarray(np.full((2, 2), np.nan, dtype=np.float32)))


def test_pil_image_without_pixels():
    with pytest.raises(ValueError, match="at least one pixel, but the PIL image is 0x5"):
        load_image(Image.new("RGB", (0, 5)))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("source", [7, None, [Image.new("RGB", (2, 2))], b"bytes"])
def test_other_types(source: object):
    with pytest.raises(TypeError, match=rf"or torch tensor, got {type(source).__name__}"):
        load_image(source)  # pyright: ignore[reportArgumentType]
