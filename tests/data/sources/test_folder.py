"""Image folders: every image once, correct pixels, and errors that name bad files."""

import logging
import os
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

import resfit
from resfit.data import Geometry, IndexedBatches, folder
from resfit.data.crops import crop_of, random_crop
from resfit.data.decode import decode
from resfit.errors import DataError
from tests.helpers import sample_photograph

PHOTO = sample_photograph("china.jpg")  # 640 x 427


def numbered(path: Path, images: int = 12, classes: int = 3, size: tuple[int, int] = (6, 5)) -> Path:
    """Write a folder whose image i has the single color (i, 10 i, class)."""
    for i in range(images):
        label = i % classes
        (path / f"class{label}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (i, 10 * i, label)).save(path / f"class{label}" / f"{i:03}.png")
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write eleven pieces of a photograph, of several sizes and shapes, in two classes."""
    path = tmp_path_factory.mktemp("photos")
    for i in range(11):
        (path / "ab"[i % 2]).mkdir(exist_ok=True)
        piece = PHOTO.crop((30 * i, 10 * i, 30 * i + 90 + 17 * i, 10 * i + 80 + 5 * i))
        piece.save(path / "ab"[i % 2] / f"{i}.jpg", quality=92)
    return path


# --- layout of folders ---------------------------------------------------------------------------------------------


def test_classes_are_sorted_and_every_image_has_its_label(tmp_path: Path) -> None:
    images = folder(numbered(tmp_path))
    x, y, weight = images.take(slice(0, len(images)))
    assert images.classes == ("class0", "class1", "class2")
    assert (x.shape, x.dtype, y.dtype, weight) == ((12, 5, 6, 3), np.uint8, np.int32, None)
    np.testing.assert_array_equal(x[:, 0, 0, 2], y)
    np.testing.assert_array_equal(images.labels, y)
    assert sorted(x[:, 0, 0, 0].tolist()) == list(range(12))
    assert [Path(path).stem for path in images.paths] == [f"{i:03}" for i in x[:, 0, 0, 0]]


def test_images_are_found_at_any_depth_through_links_and_with_suffixes_in_any_case(tmp_path: Path) -> None:
    elsewhere = numbered(tmp_path / "elsewhere", images=2, classes=1) / "class0"
    root = tmp_path / "root"
    (root / "a" / "deep" / "er").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(root / "a" / "deep" / "er" / "1.JPG", format="JPEG")
    Image.new("RGB", (4, 4)).save(root / "a" / "2.Jpeg", format="JPEG")
    (root / "a" / "link.png").symlink_to(elsewhere / "000.png")
    (root / "b").symlink_to(elsewhere, target_is_directory=True)
    images = folder(root, size=4)
    assert [str(Path(path).relative_to(root)) for path in images.paths] == [
        "a/2.Jpeg", "a/deep/er/1.JPG", "a/link.png", "b/000.png", "b/001.png",
    ]  # fmt: skip
    assert images.labels.tolist() == [0, 0, 0, 1, 1]
    assert images.take(slice(0, 5))[0].shape == (5, 4, 4, 3)


def test_hidden_files_are_skipped_and_other_files_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = numbered(tmp_path)
    (root / ".ipynb_checkpoints").mkdir()
    (root / "class0" / ".DS_Store").write_bytes(b"x")
    (root / "class0" / "._000.png").write_bytes(b"what macOS leaves beside a file on other disks")
    with caplog.at_level(logging.WARNING, "resfit"):
        assert len(folder(root)) == 12
    assert not caplog.records
    (root / "class1" / "boxes.txt").write_text("0 0 1 1")
    (root / "README.md").write_text("what this is")
    with caplog.at_level(logging.WARNING, "resfit"):
        assert len(folder(root)) == 12
    assert "2 file(s)" in caplog.text
    assert "README.md" in caplog.text


def test_classes_give_the_numbers_of_another_split(tmp_path: Path) -> None:
    train = folder(numbered(tmp_path / "train", classes=4))
    val = numbered(tmp_path / "val", images=3)
    (val / "class1" / "001.png").unlink()
    (val / "class1").rmdir()
    assert folder(val).labels.tolist() == [0, 1]
    assert folder(val, classes=train.classes).labels.tolist() == [0, 2]
    with pytest.raises(DataError, match="holds the folders class0, class2"):
        folder(val, classes=["class0", "class3"])
    with pytest.raises(DataError, match="name each folder once"):
        folder(val, classes=["class0", "class2", "class2"])


def _empty(path: Path) -> None:
    del path


def _no_folders(path: Path) -> None:
    Image.new("RGB", (4, 4)).save(path / "1.png")


def _splits(path: Path) -> None:
    numbered(path / "train")
    numbered(path / "val")


def _class_without_images(path: Path) -> None:
    numbered(path)
    (path / "class9").mkdir()
    (path / "class9" / "notes.txt").write_text("none yet")


def _loop(path: Path) -> None:
    numbered(path)
    (path / "class1" / "again").symlink_to(path / "class1", target_is_directory=True)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (_empty, {}, "holds 0 files and no folders"),
        (_no_folders, {}, "holds 1 files and no folders"),
        (_splits, {}, "splits of a dataset.*/train"),
        (_class_without_images, {}, "class9' holds no image among its 1 files"),
        (_loop, {}, "again is a link to .*class1, which was read before"),
        (numbered, {"mode": "CMYK"}, "mode to be one of L, RGB, RGBA, got 'CMYK'"),
        (numbered, {"crop": "centre", "size": 4}, "crop to be None, 'random' or 'center', got 'centre'"),
        (numbered, {"crop": "random"}, "without size"),
        (numbered, {"crop": 0.9}, "without size"),
        *[(numbered, {"crop": share, "size": 4}, f"got {share}. A number is the share") for share in (0, 1.5, True)],
        (numbered, {"size": 0}, "got 0"),
        (numbered, {"size": (4, 4, 3)}, r"got \(4, 4, 3\)"),
        (numbered, {"size": 4.5}, "got 4.5"),
        (numbered, {"threads": -1}, "got -1"),
    ],
)
def test_a_wrong_folder_or_option_raises(tmp_path: Path, make: Any, options: dict[str, Any], message: str) -> None:
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        folder(tmp_path, **options)


def test_a_missing_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no folder .*nowhere"):
        folder(tmp_path / "nowhere")


def test_an_unreadable_folder_inside_a_class_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (numbered(tmp_path) / "class1" / "private").mkdir()
    scan = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("private"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="private could not be listed: Permission denied"):
        folder(tmp_path)


def test_folders_named_like_splits_can_be_classes(tmp_path: Path) -> None:
    _splits(tmp_path)
    assert folder(tmp_path, classes=["train", "val"]).labels.tolist() == [0] * 12 + [1] * 12


# --- files ---------------------------------------------------------------------------------------------------------


def png(pixels: np.ndarray, color: int, extra: bytes = b"") -> bytes:
    """Encode a PNG file of 8 or 16 bits; `extra` chunks precede the pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = pixels.shape[:2]
    bits = 8 * pixels.dtype.itemsize
    rows = b"".join(b"\0" + row.astype(row.dtype.newbyteorder(">")).tobytes() for row in pixels)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


GREY16 = np.array([[0, 255, 256, 0x1234], [0x7FFF, 0x8000, 0xFF00, 0xFFFF]], np.uint16)


def test_sixteen_bits_keep_the_upper_eight(tmp_path: Path) -> None:
    (tmp_path / "grey.png").write_bytes(png(GREY16, 0))
    (tmp_path / "color.png").write_bytes(png(np.stack([GREY16, GREY16 // 2, GREY16 // 4], -1), 2))
    grey = decode(str(tmp_path / "grey.png"), "RGB")
    np.testing.assert_array_equal(grey, np.stack([GREY16 >> 8] * 3, -1))
    np.testing.assert_array_equal(decode(str(tmp_path / "grey.png"), "L"), GREY16 >> 8)
    np.testing.assert_array_equal(
        decode(str(tmp_path / "color.png"), "RGB"), np.stack([GREY16 >> 8, GREY16 >> 9, GREY16 >> 10], -1)
    )
    # Pillow alone makes every gray value above 255 white.
    with Image.open(tmp_path / "grey.png") as image:
        assert (np.asarray(image.convert("L")) != grey[..., 0]).any()


COLORS = np.array([[[200, 10, 30], [0, 128, 255]], [[255, 255, 255], [9, 9, 9]]], np.uint8)
GREY = COLORS[..., :1].repeat(3, axis=-1)
ALPHA = np.dstack([COLORS, [[0, 128], [255, 1]]]).astype(np.uint8)


def _palette(transparency: Any) -> Image.Image:
    image = Image.new("P", (2, 2))
    image.putpalette(COLORS.reshape(-1).tolist())
    image.putdata([0, 1, 2, 3])
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        pytest.param(Image.fromarray(COLORS), COLORS, id="colour"),
        pytest.param(_palette(None), COLORS, id="palette"),
        pytest.param(_palette(b"\x00\x80\xff\xff"), COLORS, id="palette with an alpha for every entry"),
        pytest.param(_palette(1), COLORS, id="palette with a transparent entry"),
        pytest.param(Image.fromarray(ALPHA), COLORS, id="alpha"),
        pytest.param(Image.fromarray(COLORS[..., 0]), GREY, id="grey"),
        pytest.param(Image.fromarray(ALPHA[..., [0, 3]], "LA"), GREY, id="grey and alpha"),
        pytest.param(Image.fromarray(COLORS[..., 0] > 100), np.where(GREY > 100, 255, 0), id="bits"),
    ],
)
def test_every_kind_of_png_has_its_colors(tmp_path: Path, image: Image.Image, expected: np.ndarray) -> None:
    image.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as stored:
        assert stored.mode == image.mode
    np.testing.assert_array_equal(decode(str(tmp_path / "a.png"), "RGB"), expected)


def test_alpha_is_kept_in_mode_rgba(tmp_path: Path) -> None:
    Image.fromarray(ALPHA).save(tmp_path / "a.png")
    Image.fromarray(COLORS).save(tmp_path / "b.png")
    np.testing.assert_array_equal(decode(str(tmp_path / "a.png"), "RGBA"), ALPHA)
    np.testing.assert_array_equal(decode(str(tmp_path / "b.png"), "RGBA")[..., 3], 255)


def test_a_cmyk_jpeg_has_its_colors(tmp_path: Path) -> None:
    PHOTO.convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as stored:
        assert stored.mode == "CMYK"
    difference = decode(str(tmp_path / "a.jpg"), "RGB").astype(int) - np.asarray(PHOTO)
    assert np.abs(difference).mean() < 3  # inverted, it would be above 100


def test_gray_and_color_files_mix_in_either_mode(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    PHOTO.save(tmp_path / "a" / "1.jpg")
    PHOTO.convert("L").save(tmp_path / "a" / "2.jpg")
    for mode, channels in (("RGB", 3), ("L", 1)):
        x = folder(tmp_path, mode=mode).take(slice(0, 2))[0]
        assert x.shape == (2, 427, 640, channels)
        assert np.abs(x[0].mean(-1) - x[1].mean(-1)).mean() < 16  # gray weighs the colors, the mean does not


def test_a_large_rotated_photograph_is_decoded_at_a_fraction_of_its_size(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    PHOTO.save(tmp_path / "a.jpg", exif=exif, quality=95)
    PHOTO.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "b.jpg", quality=95)
    assert decode(str(tmp_path / "a.jpg")).shape == (640, 427, 3)
    for size in ((64, 40), (600, 400)):
        turned, upright = (
            decode(str(tmp_path / name), "RGB", size, lambda h, w: (7, 20, w, h)) for name in ("a.jpg", "b.jpg")
        )
        assert turned.shape == (*size, 3)
        assert np.abs(turned.astype(int) - upright).mean() < 2


def _cut(share: float) -> Any:
    def damage(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: int(share * len(data))])

    return damage


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut(0.5), "not be read"),
        (_cut(0.99), "not be read"),
        (_cut(0), "not an image file"),
        (lambda path: path.write_text("<html>404 Not Found</html>"), "not an image file"),
        (lambda path: path.unlink(), "No such file"),
        (lambda path: (path.unlink(), path.symlink_to(path.parent / "gone")), "No such file"),
    ],
    ids=["half", "all but the end", "empty", "a web page", "deleted", "a link to nothing"],
)
@pytest.mark.parametrize("size", [None, 16])
def test_a_bad_file_is_named(tmp_path: Path, suffix: str, damage: Any, message: str, size: int | None) -> None:
    (tmp_path / "a").mkdir()
    for name in ("1", "2", "3"):
        PHOTO.crop((100, 100, 220, 200)).save(tmp_path / "a" / f"{name}{suffix}")
    images = folder(tmp_path, size=size)
    damage(tmp_path / "a" / f"2{suffix}")
    batches = IndexedBatches(images, Geometry(batch_size=1)).epoch(0)
    next(batches)  # the batch before the bad file
    with pytest.raises(DataError, match=rf"a/2\{suffix} .*{message}"):
        next(batches)


def test_a_truncated_image_raises_even_if_pillow_accepts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(DataError, match="LOAD_TRUNCATED_IMAGES is True"):
        folder(numbered(tmp_path))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("files")
    piece = PHOTO.crop((100, 100, 148, 140))
    for suffix in ("jpg", "png", "webp", "bmp"):
        piece.save(path / f"a.{suffix}")
    piece.quantize(16).save(path / "palette.png")
    piece.save(path / "progressive.jpg", progressive=True)
    return {file.name: file.read_bytes() for file in path.iterdir()} | {"sixteen.png": png(GREY16, 0)}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.filterwarnings("ignore")  # Pillow warns of odd metadata; here only images and errors count
def test_a_damaged_file_gives_an_image_or_a_data_error(tmp_path: Path, files: dict[str, bytes], data: Any) -> None:
    name = data.draw(st.sampled_from(sorted(files)))
    content = bytearray(files[name])
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / name
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    size = data.draw(st.sampled_from([None, (8, 8)]))
    try:
        x = decode(str(path), "RGB", size)
    except DataError:
        with pytest.raises(DataError, match=name):
            decode(str(path), "RGB", size)
    else:
        assert x.dtype == np.uint8
        assert x.shape[-1] == 3


def test_images_of_several_sizes_need_a_size(photos: Path) -> None:
    with pytest.raises(DataError, match=r"0\.jpg has shape \(80, 90, 3\).*Pass size="):
        folder(photos).take(slice(0, 2))
    assert folder(photos, size=(12, 20)).take(slice(0, 11))[0].shape == (11, 12, 20, 3)


# --- crops ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(375, 500), (500, 375), (256, 256), (300, 1000), (257, 263)])
@pytest.mark.parametrize(
    ("crop", "side", "shorter"),
    [("center", 224, 256), ("center", 32, 36), (224 / 232, 224, 232), (0.95, 224, 235), (0.95, 160, 168), (1, 64, 64)],
)
def test_the_center_crop_equals_resize_and_crop(
    tmp_path: Path, size: tuple[int, int], crop: str | float, side: int, shorter: int
) -> None:
    """The reference is torchvision's Resize(256) and CenterCrop(224) of the whole image, and timm's at other shares."""
    height, width = size
    PHOTO.resize((width, height)).save(tmp_path / "a.png")
    w, h = (shorter, int(shorter * height / width)) if width <= height else (int(shorter * width / height), shorter)
    with Image.open(tmp_path / "a.png") as image:
        resized = image.resize((w, h), Image.Resampling.BILINEAR)
    left, top = round((w - side) / 2), round((h - side) / 2)
    expected = np.asarray(resized.crop((left, top, left + side, top + side)))
    got = decode(str(tmp_path / "a.png"), "RGB", (side, side), crop_of(crop, (side, side), None, ()))
    # The rounding of a coefficient may differ in each of the two directions.
    apart = np.abs(got.astype(int) - expected)
    assert apart.max() <= 2
    assert (apart > 1).mean() < 1e-3


@given(height=st.integers(1, 700), width=st.integers(1, 700), seed=st.integers(0, 1000))
def test_a_random_crop_is_inside_the_image_and_has_an_allowed_shape(height: int, width: int, seed: int) -> None:
    left, top, right, bottom = random_crop(height, width, np.random.default_rng(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    w, h = right - left, bottom - top
    if 3 / 4 <= width / height <= 4 / 3 and min(height, width) > 50:
        assert 0.07 < w * h / (width * height) <= 1
        assert 0.7 < w / h < 1.43


def test_random_crops_have_the_documented_distribution() -> None:
    """The reference is the textbook loop with other draws: area, ratio and center have equal means and spreads."""

    def textbook(rng: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
        while True:
            area = rng.uniform(0.08, 1) * height * width
            ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
            w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
            if w <= width and h <= height:
                left, top = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
                return left, top, left + w, top + h

    rng, height, width, n = np.random.default_rng(0), 375, 500, 8000
    boxes = np.array([[random_crop(height, width, rng), textbook(rng, height, width)] for _ in range(n)])
    left, top, right, bottom = boxes.transpose(2, 1, 0)  # each (ours or textbook's, draws)
    for what in ((right - left) * (bottom - top), np.log((right - left) / (bottom - top)), left + right, top + bottom):
        ours, theirs = what
        assert abs(ours.mean() - theirs.mean()) < 4 * theirs.std() * np.sqrt(2 / n)
        assert ours.std() == pytest.approx(theirs.std(), rel=0.05)


def test_random_crops_reach_every_edge() -> None:
    draws = np.random.default_rng(0)
    boxes = [random_crop(9, 9, draws) for _ in range(300)]
    inside = [box for box in boxes if box[2] - box[0] < 9 and box[3] - box[1] < 9]
    assert [min(box[side] for box in inside) for side in (0, 1)] == [0, 0]
    assert [max(box[side] for box in inside) for side in (2, 3)] == [9, 9]


def test_a_crop_is_the_described_part_of_the_image(tmp_path: Path) -> None:
    PHOTO.save(tmp_path / "a.png")
    box = (100, 50, 340, 230)
    expected = np.asarray(PHOTO.crop(box).resize((60, 45), Image.Resampling.BILINEAR)).astype(int)
    got = decode(str(tmp_path / "a.png"), "RGB", (45, 60), lambda height, width: box)
    # At the edges, the filter reads pixels beyond the box, which a piece that is cropped first does not have.
    assert np.abs(got - expected)[1:-1, 1:-1].max() <= 1
    assert np.abs(got - expected).max() < 40


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size_and_looks_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = PHOTO.resize((2560, 1708), Image.Resampling.LANCZOS)
    large.save(tmp_path / "a.jpg", quality=95)
    drafts: list[tuple[int, int]] = []
    original = Image.Image.resize

    def resize(image: Image.Image, *args: Any, **options: Any) -> Image.Image:
        drafts.append(image.size)
        return original(image, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", resize)
    for crop, seen in [
        ((0, 0, 2560, 1708), (640, 427)),
        ((500, 300, 1600, 1400), (1280, 854)),
        ((500, 300, 900, 700), (2560, 1708)),
    ]:
        got = decode(str(tmp_path / "a.jpg"), "RGB", (150, 150), lambda height, width, crop=crop: crop)
        assert drafts.pop() == seen
        expected = np.asarray(original(large.crop(crop), (150, 150), Image.Resampling.BILINEAR))
        difference = got.astype(float) - expected
        assert abs(difference.mean()) < 0.5  # no shift in brightness
        assert np.abs(difference).mean() < 4  # a shift of half a pixel gives twice as much: see below
        drafts.clear()
    shifted = np.asarray(original(large.crop((516, 300, 916, 700)), (150, 150), Image.Resampling.BILINEAR)).astype(
        float
    )
    assert np.abs(shifted - expected).mean() > 4


# --- epochs --------------------------------------------------------------------------------------------------------


def stream(batches: IndexedBatches, epoch: int, start: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(batch.x[: batch.size], batch.y[: batch.size]) for batch in batches.epoch(epoch, start)]


def flat(batches: list[tuple[np.ndarray, np.ndarray]]) -> list[bytes]:
    return [image.tobytes() for x, _ in batches for image in x]


@pytest.mark.parametrize("threads", [0, 3])
def test_an_epoch_is_every_image_once(tmp_path: Path, threads: int) -> None:
    batches = IndexedBatches(folder(numbered(tmp_path, images=31), threads=threads), Geometry(batch_size=4, seed=0))
    epochs = [stream(batches, epoch) for epoch in (0, 1, 0)]
    rows = [[int(i) for x, _ in epoch for i in x[:, 0, 0, 0]] for epoch in epochs]
    assert sorted(rows[0]) == sorted(rows[1]) == list(range(31))
    assert rows[0] != rows[1]
    assert rows[0] == rows[2]
    assert all((x[:, 0, 0, 2] == y).all() for epoch in epochs for x, y in epoch)


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize("shard", [(0, 1), (1, 2)])
def test_random_crops_depend_on_seed_epoch_and_image_only(photos: Path, threads: int, shard: tuple[int, int]) -> None:
    def batches(seed: int = 0, batch_size: int = 4, threads: int = threads) -> IndexedBatches:
        images = folder(photos, size=10, crop="random", threads=threads)
        return IndexedBatches(images, Geometry(batch_size, seed=seed, shard=shard))

    whole = stream(batches(), epoch=2)
    assert flat(whole) == flat(stream(batches(threads=0), epoch=2))
    for start in range(len(whole) + 1):
        assert flat(stream(batches(), 2, start)) == flat(whole[start:])
    if shard == (0, 1):
        assert flat(whole) == flat(stream(batches(batch_size=3), epoch=2))
        other_epoch, other_seed = flat(stream(batches(), epoch=1)), flat(stream(batches(seed=1), epoch=2))
        assert len({*flat(whole), *other_epoch, *other_seed}) == 33  # no crop occurs twice


def test_the_crop_of_an_image_does_not_depend_on_its_place_in_the_epoch(photos: Path) -> None:
    images = folder(photos, size=10, crop="random").for_epoch(5, 3)
    np.testing.assert_array_equal(images.take(np.array([7]))[0][0], images.take(np.array([2, 7, 4]))[0][1])
    assert not np.array_equal(images[7][0], images.for_epoch(5, 4)[7][0])


def test_equal_images_have_different_crops(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for i in range(6):
        PHOTO.crop((0, 0, 200, 150)).save(tmp_path / "a" / f"{i}.png")
    x = folder(tmp_path, size=10, crop="random").for_epoch(0, 0).take(slice(0, 6))[0]
    assert len({image.tobytes() for image in x}) == 6


@pytest.mark.parametrize(
    "read",
    [
        lambda images: images.take(slice(0, 2)),
        lambda images: next(IndexedBatches(images, Geometry(batch_size=2)).epoch(0)),
    ],
    ids=["take", "in order"],
)
def test_random_crops_without_a_seed_raise(photos: Path, read: Any) -> None:
    with pytest.raises(DataError, match="Use crop='center' for validation"):
        read(folder(photos, size=10, crop="random", threads=0))


def test_a_folder_is_a_sequence_of_images_and_labels_that_can_be_sent_to_other_processes(photos: Path) -> None:
    images = pickle.loads(pickle.dumps(folder(photos, size=8, crop="center")))
    assert len(images) == 11
    pairs = list(images)  # ends at an IndexError, as sequences do
    x, y, _ = images.take(slice(0, 11))
    np.testing.assert_array_equal(np.stack([image for image, _ in pairs]), x)
    assert [label for _, label in pairs] == y.tolist()
    np.testing.assert_array_equal(images[-1][0], x[-1])


def test_a_slice_of_a_folder_is_a_folder_and_its_repr_is_short(tmp_path: Path) -> None:
    images = folder(numbered(tmp_path))
    part = images[2:7:2]
    assert part.paths == images.paths[2:7:2]
    np.testing.assert_array_equal(part.take(slice(0, 3))[0], images.take(slice(2, 7, 2))[0])
    np.testing.assert_array_equal(part.labels, images.labels[2:7:2])
    assert part.classes == images.classes
    assert repr(images).startswith("ImageFolder(12 images of 3 classes, size=None, crop=None, mode='RGB', files=")
    assert repr(images) != repr(part) != repr(images[:0])


def test_fit_trains_on_a_folder(tmp_path: Path) -> None:
    for split, n in (("train", 24), ("val", 9)):
        for i in range(n):
            name = ("dark", "light")[i % 2]
            (tmp_path / split / name).mkdir(parents=True, exist_ok=True)
            PHOTO.point(lambda value, i=i: value // 4 + (i % 2) * 150).save(tmp_path / split / name / f"{i}.jpg")
    train = folder(tmp_path / "train", size=16, crop="random")
    val = folder(tmp_path / "val", size=16, crop="center", classes=train.classes)
    model = resfit.Model(resfit.create_model("resnet20", num_classes=2, depths=(1,), widths=(4,)))
    model.compile(optimizer="adamw", learning_rate=0.02, dispatch="jit")
    history = model.fit(train, batch_size=8, epochs=4, validation_data=val, verbose=0)
    assert history.history["val_accuracy"][-1] == 1
    assert model.predict(val, verbose=0).shape == (9, 2)
    with pytest.raises(DataError, match="Use crop='center'"):
        model.evaluate(train, verbose=0)


# --- splits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.99])
def test_a_split_is_stratified_disjoint_and_complete(tmp_path: Path, fraction: float) -> None:
    images = folder(numbered(tmp_path, images=30), size=4, crop="random")
    train, val = images.split(fraction, seed=3)
    assert sorted((*train.paths, *val.paths)) == sorted(images.paths)
    held_out = min(max(round(10 * fraction), 1), 9)
    assert set(val.class_counts.values()) == {held_out}
    assert set(train.class_counts.values()) == {10 - held_out}
    assert (train.crop, val.crop) == ("random", "center")
    for part in (train, val):
        assert [images.labels[images.paths.index(path)] for path in part.paths] == part.labels.tolist()
    assert images.split(fraction, seed=3)[1].paths == val.paths
    assert fraction == 0.99 or images.split(fraction, seed=4)[1].paths != val.paths


def test_the_only_image_of_a_class_is_for_training(tmp_path: Path) -> None:
    numbered(tmp_path, images=9)
    (tmp_path / "rare").mkdir()
    Image.new("RGB", (6, 5)).save(tmp_path / "rare" / "0.png")
    train, val = folder(tmp_path).split()
    assert (train.class_counts["rare"], val.class_counts["rare"]) == (1, 0)


@pytest.mark.parametrize("labels", [None, [0.5, 1.5, 2.5, 3.5], [[1, 0], [0, 1], [1, 1], [0, 0]]], ids=str)
def test_images_without_classes_are_split_too(tmp_path: Path, labels: Any) -> None:
    images = resfit.data.files(folder(numbered(tmp_path, images=4)).paths, labels)
    train, val = images.split(0.25)
    assert (len(train), len(val)) == (3, 1)
    with pytest.raises(DataError, match="Expected one class number"):
        _ = images.class_counts


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 20, True, "0.2", float("nan")])
def test_a_wrong_fraction_raises(tmp_path: Path, fraction: Any) -> None:
    with pytest.raises(DataError, match="as a fraction between 0 and 1"):
        folder(numbered(tmp_path)).split(fraction)


def test_one_image_of_each_class_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no class has two"):
        folder(numbered(tmp_path, images=3)).split(0.2)


# --- broken files --------------------------------------------------------------------------------------------------


def with_broken(path: Path) -> tuple[Path, list[Path]]:
    """Write twelve images and damage three of them, of two kinds."""
    numbered(path)
    broken = [path / "class0" / "000.png", path / "class1" / "001.png", path / "class1" / "x.jpg"]
    broken[0].write_bytes(b"<html>404</html>")
    broken[1].write_bytes(broken[1].read_bytes()[:-40])
    PHOTO.save(broken[2])
    broken[2].write_bytes(broken[2].read_bytes()[:20_000])
    return path, broken


def test_broken_files_are_listed_before_training(tmp_path: Path) -> None:
    path, broken = with_broken(tmp_path)
    with pytest.raises(DataError, match="3 of 13 images cannot be read") as raised:
        folder(path, size=4)
    assert all(str(file) in str(raised.value) for file in broken)
    assert "on_error='skip'" in str(raised.value)


def test_broken_files_are_skipped_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, broken = with_broken(tmp_path)
    with caplog.at_level(logging.WARNING, "resfit"):
        images = folder(path, size=4, on_error="skip")
    assert "3 of 13 images cannot be read and are skipped" in caplog.text
    assert images.skipped == tuple(map(str, broken))
    assert all(str(file) in caplog.text for file in broken)
    assert images.class_counts == {"class0": 3, "class1": 3, "class2": 4}
    assert images.take(slice(None))[0].shape == (10, 4, 4, 3)
    part = resfit.data.files([*images.paths, broken[2]], [*"abcdeabcdea"], size=4, on_error="skip")
    assert (len(part), part.labels.tolist(), part.skipped) == (10, [0, 1, 2, 3, 4] * 2, (str(broken[2]),))


def test_a_class_of_broken_files_only_raises_also_with_skip(tmp_path: Path) -> None:
    for file in sorted((numbered(tmp_path) / "class2").iterdir()):
        file.write_bytes(b"")
    with pytest.raises(DataError, match=r"No image of the classes \['class2'\] can be read"):
        folder(tmp_path, on_error="skip")
    with pytest.raises(DataError, match="Expected on_error to be 'raise' or 'skip', got 'ignore'"):
        folder(tmp_path, on_error="ignore")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".gif", ".tif"])
def test_only_suspicious_files_are_decoded_before_training(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from resfit.data.sources import broken_files

    decoded: list[str] = []
    monkeypatch.setattr(broken_files, "decode", lambda path, *rest: decoded.append(path))
    file = tmp_path / f"a{suffix}"
    PHOTO.resize((40, 30)).save(file)
    assert broken_files.readable([str(file)], "RGB", "raise").tolist() == [True]
    assert decoded == ([str(file)] if suffix == ".tif" else [])
    file.write_bytes(file.read_bytes()[:-30])
    broken_files.readable([str(file)], "RGB", "raise")
    assert decoded[-1:] == [str(file)]


def test_a_whole_jpeg_with_bytes_after_its_end_is_no_broken_file(tmp_path: Path) -> None:
    path = numbered(tmp_path) / "class0" / "x.jpg"
    PHOTO.save(path)
    path.write_bytes(path.read_bytes() + b"trailer of a camera")
    assert str(path) in folder(tmp_path, size=4).paths
