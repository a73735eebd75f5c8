"""Every mode of Pillow and every EXIF orientation gives the same pixels for every source."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from resfit.data import folder, huggingface
from resfit.data.crops import center_crop
from resfit.data.decode import decode
from resfit.data.records import stack_images
from resfit.data.sources.pictures import Pictures
from resfit.errors import DataError
from resfit.transforms import Transforms

GREY = np.array([[0, 255, 51, 102], [153, 204, 20, 30], [40, 50, 60, 70], [80, 90, 100, 110]], np.uint8)
COLOR = np.stack([GREY, GREY.T, 255 - GREY], axis=-1)
OPAQUE, HALF = np.full((4, 4), 255, np.uint8), np.full((4, 4), 51, np.uint8)
SIXTEEN = (GREY.astype(np.uint16) << 8) + 77
TRANSFORMS = Transforms(4, 4)


def rgb(grey: np.ndarray) -> np.ndarray:
    return np.stack([grey] * 3, axis=-1)


def bands(mode: str, *arrays: np.ndarray) -> Image.Image:
    return Image.merge(mode, [Image.fromarray(array) for array in arrays])


def packed(mode: str, pixels: np.ndarray) -> Image.Image:
    return Image.frombytes(mode, (4, 4), np.ascontiguousarray(pixels).tobytes())


def palette(mode: str) -> Image.Image:
    image = packed(
        mode,
        np.arange(16, dtype=np.uint8)
        if mode == "P"
        else np.stack([np.arange(16), OPAQUE.ravel()], -1).astype(np.uint8),
    )
    image.putpalette(COLOR.reshape(-1).tolist())
    return image


HUES = np.array([[[0, 255, 255], [85, 255, 255], [170, 255, 255], [0, 0, 100]]] * 4, np.uint8)
OF_HUES = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [100, 100, 100]]] * 4, np.uint8)
LIGHTNESS = np.array([[[0, 0, 0], [128, 0, 0], [255, 0, 0], [51, 0, 0]]] * 4, np.uint8)
# L* of 0, 50.2, 100 and 20 by CIE's formula and the curve of sRGB.
OF_LIGHTNESS = rgb(np.array([[0, 119, 255, 48]] * 4, np.uint8))

# mode -> (image, a lossless file format that keeps the mode, pixels by hand, levels that rounding may differ by)
MODES: dict[str, tuple[Image.Image, str | None, np.ndarray, int]] = {
    "1": (Image.fromarray(GREY > 90), "png", rgb(np.where(GREY > 90, 255, 0)), 0),
    "L": (Image.fromarray(GREY), "png", rgb(GREY), 0),
    "LA": (bands("LA", GREY, HALF), "png", rgb(GREY), 0),
    "La": (bands("LA", GREY, HALF).convert("La"), None, rgb(GREY), 3),  # premultiplied by 51 / 255
    "P": (palette("P"), "png", COLOR, 0),
    "PA": (palette("PA"), None, COLOR, 0),
    "RGB": (Image.fromarray(COLOR), "png", COLOR, 0),
    "RGBA": (bands("RGBA", *COLOR.transpose(2, 0, 1), HALF), "png", COLOR, 0),
    "RGBa": (bands("RGBA", *COLOR.transpose(2, 0, 1), HALF).convert("RGBa"), None, COLOR, 3),
    "RGBX": (packed("RGBX", np.dstack([COLOR, HALF])), None, COLOR, 0),
    "CMYK": (bands("CMYK", *(255 - COLOR).transpose(2, 0, 1), 0 * GREY), "tiff", COLOR, 0),
    "YCbCr": (bands("YCbCr", GREY, 0 * GREY + 128, 0 * GREY + 128), "tiff", rgb(GREY), 1),
    "HSV": (bands("HSV", *HUES.transpose(2, 0, 1)), None, OF_HUES, 0),
    "LAB": (packed("LAB", LIGHTNESS), None, OF_LIGHTNESS, 1),
    "I": (Image.fromarray(SIXTEEN.astype(np.int32)), "tiff", rgb(GREY), 0),
    "I;16": (Image.fromarray(SIXTEEN), "png", rgb(GREY), 0),
    "I;16L": (packed("I;16L", SIXTEEN.astype("<u2")), None, rgb(GREY), 0),
    "I;16B": (packed("I;16B", SIXTEEN.astype(">u2")), "tiff", rgb(GREY), 0),
    "F": (Image.fromarray(GREY.astype(np.float32) / 255), "tiff", rgb(GREY), 0),
}  # fmt: skip


def saved(image: Image.Image, path: Path, suffix: str, **options: Any) -> Path:
    (path / "class").mkdir(exist_ok=True)
    options |= {"lossless": True} if suffix == "webp" else {}
    image.save(path / "class" / f"image.{suffix}", **options)
    return path / "class" / f"image.{suffix}"


def opened(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return TRANSFORMS(image)


def from_hugging_face(file: Path) -> np.ndarray:
    data = datasets.Dataset.from_dict({"image": [str(file)]}, features=datasets.Features(image=datasets.Image()))
    return huggingface(data, mode="RGB").take(slice(0, 1))[0][0]


FROM_A_FILE: dict[str, Callable[[Path], np.ndarray]] = {
    "path": TRANSFORMS,
    "text": lambda file: TRANSFORMS(str(file)),
    "bytes": lambda file: TRANSFORMS(file.read_bytes()),
    "opened file": lambda file: TRANSFORMS(io.BytesIO(file.read_bytes())),
    "opened by Pillow": opened,
    "batch": lambda file: TRANSFORMS.batch([file])[0],
    "batch of one path": lambda file: TRANSFORMS.batch(str(file))[0],
    "folder": lambda file: folder(file.parent.parent).take(slice(0, 1))[0][0],
    "Hugging Face": from_hugging_face,
}
FROM_AN_IMAGE: dict[str, Callable[[Image.Image], np.ndarray]] = {
    "transforms": TRANSFORMS,
    "batch": lambda image: TRANSFORMS.batch([image])[0],
    "Hugging Face": lambda image: Pictures(None, None, "RGB", datasets.Image()).decode(image, None, (0,)),
    "resized": lambda image: decode(image, "RGB", (4, 4)),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_the_same_pixels_for_every_source(mode: str, tmp_path: Path) -> None:
    image, suffix, expected, levels = MODES[mode]
    assert image.mode == mode
    for way, pixels in FROM_AN_IMAGE.items():
        np.testing.assert_allclose(pixels(image).astype(int), expected, atol=levels, err_msg=way)
    (stacked,) = stack_images([image])
    np.testing.assert_allclose(stacked.astype(int), expected[..., : stacked.shape[-1]], atol=levels)
    if suffix is None:
        return
    file = saved(image, tmp_path, suffix)
    with Image.open(file) as opened:
        assert opened.mode == mode
    for way, pixels in FROM_A_FILE.items():
        np.testing.assert_allclose(pixels(file).astype(int), expected, atol=levels, err_msg=way)


TURNED = {
    1: COLOR,
    2: COLOR[:, ::-1],
    3: COLOR[::-1, ::-1],
    4: COLOR[::-1],
    5: COLOR.transpose(1, 0, 2),
    6: np.rot90(COLOR, -1),
    7: COLOR[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(COLOR, 1),
}


@pytest.mark.parametrize("suffix", ["png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", TURNED)
def test_every_source_applies_the_exif_orientation(orientation: int, suffix: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = saved(Image.fromarray(COLOR), tmp_path, suffix, exif=exif)
    for way, pixels in FROM_A_FILE.items():
        np.testing.assert_array_equal(pixels(file), TURNED[orientation], err_msg=way)


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_crops_are_those_of_the_upright_image(orientation: int, suffix: str, tmp_path: Path) -> None:
    wide = np.random.default_rng(0).integers(0, 256, (24, 40, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = saved(Image.fromarray(wide), tmp_path, suffix, exif=exif)
    upright = Image.fromarray(decode(turned))
    assert upright.size == ((40, 24) if orientation < 5 else (24, 40))
    crop = lambda height, width: center_crop(height, width, (18, 12))  # noqa: E731
    box = crop(upright.height, upright.width)
    expected = np.asarray(upright.resize((12, 18), Image.Resampling.BILINEAR, box=box))
    np.testing.assert_array_equal(decode(turned, "RGB", (18, 12), crop), expected)


def test_invalid_exif_data_are_ignored(tmp_path: Path) -> None:
    file = saved(Image.fromarray(COLOR), tmp_path, "png", exif=b"Exif\0\0not a TIFF file")
    np.testing.assert_array_equal(decode(file), COLOR)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (Image.fromarray(GREY.astype(np.float32)), "floating-point pixels from 0 to 255.*Scale the pixels"),
        (Image.fromarray(GREY.astype(np.float32) / 255 - 0.5), "floating-point pixels from -0.5"),
        (Image.fromarray(np.full((4, 4), np.nan, np.float32)), "floating-point pixels from nan"),
        (Image.fromarray(GREY.astype(np.int32)), "32-bit pixels from 0 to 255, whose scale is unknown"),
        (Image.fromarray(GREY.astype(np.int32) * 1000), "32-bit pixels from 0 to 255000"),
        (Image.fromarray(-GREY.astype(np.int32) * 100), "32-bit pixels from -25500"),
    ],
)
def test_pixels_of_unknown_scale_raise_for_every_source(image: Image.Image, words: str, tmp_path: Path) -> None:
    for pixels in FROM_AN_IMAGE.values():
        with pytest.raises(DataError, match=words):
            pixels(image)
    file = saved(image, tmp_path, "tiff")
    for way, pixels in FROM_A_FILE.items():
        with pytest.raises(DataError, match=words) as caught:
            pixels(file)
        assert way not in ("path", "text", "folder", "batch", "opened by Pillow") or "image.tiff" in str(caught.value)


def test_every_source_reads_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.fromarray(COLOR), Image.fromarray(255 - COLOR)]
    file = saved(frames[0], tmp_path, "gif", save_all=True, append_images=frames[1:])
    for way, pixels in FROM_A_FILE.items():
        np.testing.assert_array_equal(pixels(file), COLOR, err_msg=way)


def test_a_truncated_photograph_is_named(tmp_path: Path) -> None:
    file = saved(Image.fromarray(COLOR), tmp_path, "png")
    file.write_bytes(file.read_bytes()[:60])
    for way in ("path", "text", "batch", "folder", "opened by Pillow"):
        with pytest.raises(DataError, match=r"image\.png could not be read"):
            FROM_A_FILE[way](file)
    for way in ("bytes", "Hugging Face"):
        with pytest.raises(DataError, match=r"its image \(\d+ bytes\) could not be read"):
            FROM_A_FILE[way](file)
