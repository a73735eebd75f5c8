"""The transforms of published weights against the pixels of torchvision and timm."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import resfit
from resfit.errors import CompileError, DataError, SavedModelError, WeightsError
from resfit.nets import ZOO
from resfit.preprocess import Normalize
from resfit.transforms import Transforms, transforms_for
from resfit.transforms.pretrained_transforms import PUBLISHED
from tests.helpers import CLASSES, compiled, context_of, fit, labels
from tests.packages import package

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "transforms.json").read_text())
ONE_LEVEL = 2  # of 255; versions of JPEG decoders differ by this much


def published(key: str, **options: bool) -> Transforms:
    """Return the transforms for the arguments that a user would pass."""
    library, _, file = key.partition("/")
    if library == "torchvision":
        name, _, weights = file.partition(".")
        return transforms_for(f"torchvision/{weights}", name, **options)
    return transforms_for(key, **options)


def photograph(name: str) -> np.ndarray:
    from sklearn.datasets import load_sample_image

    pixels = load_sample_image(name.partition(",")[0])
    return pixels.transpose(1, 0, 2) if "on its side" in name else pixels


def seen(transforms: Transforms, pixels: np.ndarray) -> np.ndarray:
    return transforms(pixels)[16::32, 16::32].astype(int)


def test_the_table_has_exactly_the_files_of_zoo_networks() -> None:
    assert set(PUBLISHED) == set(GOLDEN["files"])
    assert {key.partition("/")[2].partition(".")[0] for key in PUBLISHED} <= set(ZOO)


@pytest.mark.parametrize("key", GOLDEN["files"])
def test_transforms_of_a_file_equal_those_of_timm_and_torchvision(key: str) -> None:
    usual, at_test_size = GOLDEN["files"][key]
    for expected, found in ((usual, published(key)), (at_test_size, published(key, at_test_size=True))):
        assert found == Transforms(**expected)


@pytest.mark.parametrize("photo", GOLDEN["pixels"])
def test_pixels_of_photographs_equal_those_of_the_libraries(photo: str) -> None:
    for key, expected in GOLDEN["pixels"][photo].items():
        np.testing.assert_allclose(seen(published(key), photograph(photo)), expected, atol=ONE_LEVEL, err_msg=key)


@pytest.mark.parametrize(
    "wrong",
    [Transforms(235, 224, "bilinear"), Transforms(236, 224, "bicubic"), Transforms(234, 224, "bicubic")],
    ids=["another interpolation", "a pixel more", "a pixel less"],
)
def test_the_comparison_sees_one_pixel_and_another_interpolation(wrong: Transforms) -> None:
    expected = np.asarray(GOLDEN["pixels"]["china.jpg"]["timm/resnet50.a1_in1k"])
    assert np.abs(seen(wrong, photograph("china.jpg")) - expected).max() > 2 * ONE_LEVEL


@pytest.mark.originals
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("resize", [160, 232, 256])
def test_every_pixel_equals_that_of_torchvision(resize: int, interpolation: str) -> None:
    torchvision = package("torchvision").transforms
    photographs = [photograph("china.jpg"), photograph("flower.jpg, on its side")]
    if importlib.util.find_spec("skimage"):
        from skimage import data

        photographs += [data.astronaut(), data.chelsea(), data.coffee(), data.rocket()]
    theirs = torchvision.Compose(
        [
            torchvision.Resize(resize, torchvision.InterpolationMode(interpolation), antialias=True),
            torchvision.CenterCrop(159),
        ]
    )
    ours = Transforms(resize, 159, interpolation)
    for pixels in photographs:
        np.testing.assert_array_equal(ours(pixels), np.asarray(theirs(Image.fromarray(pixels))))


def test_the_normalization_follows_the_formula() -> None:
    transforms = transforms_for("timm/resnet18.a1_in1k")
    x = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    expected = (x / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(transforms.preprocess(jnp.asarray(x)), expected, atol=2e-6)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_a_photograph_can_be_a_file_a_pil_image_or_an_array(mode: str, tmp_path: Path) -> None:
    picture = Image.fromarray(np.ascontiguousarray(photograph("china.jpg"))).convert(mode)
    expected = np.asarray(picture.convert("RGB"))
    picture.save(tmp_path / "photo.png")
    transforms = Transforms(64, 48)
    assert transforms(picture).shape == (48, 48, 3)
    for same in (picture, str(tmp_path / "photo.png"), tmp_path / "photo.png"):
        np.testing.assert_array_equal(transforms(same), transforms(expected))
    if mode == "L":
        np.testing.assert_array_equal(transforms(np.asarray(picture)), transforms(expected))


def test_photographs_of_all_sizes_become_one_batch() -> None:
    transforms = Transforms(20, 16)
    photographs = [np.full(shape, i, np.uint8) for i, shape in enumerate([(16, 16, 3), (7, 90, 3), (200, 30, 3)])]
    batch = transforms.batch(iter(photographs))
    assert (batch.shape, batch.dtype) == ((3, 16, 16, 3), np.uint8)
    assert [int(image.min()) for image in batch] == [int(image.max()) for image in batch] == [0, 1, 2]
    with pytest.raises(DataError, match="at least one"):
        transforms.batch([])


@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 8, 3), np.float32), np.zeros((2, 8, 8, 3), np.uint8), np.zeros((8, 8, 4), np.uint8), 3],
    ids=["floats", "a batch", "four channels", "a number"],
)
def test_values_that_are_not_a_photograph_raise(image: Any) -> None:
    with pytest.raises(DataError, match="Expected a file's path, a PIL image, or uint8"):
        Transforms(8, 8)(image)


@pytest.mark.parametrize(
    "arguments",
    [
        {"resize": 8, "crop": 9},
        {"resize": 8, "crop": 0},
        {"resize": 8.0, "crop": 8},
        {"resize": 8, "crop": 8, "interpolation": "nearest"},
    ],
)
def test_invalid_transforms_raise(arguments: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="Expected"):
        Transforms(**arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("timm/resnet50.a9_in1k",), r"resnet50\.a1_in1k"),
        (("timm/resnet50",), r"resnet50\.a1_in1k"),
        (("timm/resnet50.a1_in1k", "resnet18"), r"resnet18\.a1_in1k"),
        (("torchvision/IMAGENET1K_V2",), "pass the network as well"),
        (("torchvision/IMAGENET1K_V2", "resnet18"), r"resnet18\.IMAGENET1K_V1"),
        (("some/file",), r"Transforms\(resize"),
    ],
)
def test_an_unknown_file_raises_with_the_files_of_its_network(arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(WeightsError, match=said):
        transforms_for(*arguments)


# --- with a model -----------------------------------------------------------------------------------------------------

OWN = Transforms(resize=10, crop=8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def small(**arguments: Any) -> Any:
    return resfit.create_model("resnet20", num_classes=CLASSES, depths=(1,), widths=(4,), **arguments)


def photographs(n: int = 6) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (12 + i, 30 - i, 3), np.uint8) for i in range(n)]


def test_a_model_predicts_the_same_from_photographs_after_it_is_loaded(tmp_path: Path) -> None:
    net = small()
    model = resfit.Model(net)
    assert model.transforms is None
    model.transforms = OWN
    model.class_names = ["cat", "dog", "cow"]
    before = model.predict(model.transforms.batch(photographs()), outputs="probabilities", verbose=0)
    model.save(tmp_path / "net.safetensors")
    loaded = resfit.load(tmp_path / "net.safetensors")
    assert (loaded.transforms, loaded.class_names) == (OWN, ["cat", "dog", "cow"])
    after = loaded.predict(loaded.transforms.batch(photographs()), outputs="probabilities", verbose=0)
    np.testing.assert_allclose(after, before, atol=1e-6)
    by_hand = net(OWN.preprocess(jnp.asarray(OWN.batch(photographs()))), train=False)
    np.testing.assert_allclose(np.log(before), by_hand - np.logaddexp.reduce(by_hand, axis=1)[:, None], atol=1e-5)


@pytest.mark.parametrize("how", ["transforms", "file", "file with none", "file, then its transforms anew"])
def test_auto_preprocessing_is_that_of_the_model(how: str, tmp_path: Path) -> None:
    model = resfit.Model(small())
    if how == "file with none":
        model.compile("sgd", preprocess=None)
    else:
        model.transforms = OWN
    if how.startswith("file"):
        model.save(tmp_path / "net.safetensors")
        model = resfit.load(tmp_path / "net.safetensors")
    if "anew" in how:
        model.transforms = Transforms(10, 8)
    expected = {"file with none": None, "file, then its transforms anew": Transforms(10, 8).preprocess}
    model.compile("sgd", learning_rate=0.1, dispatch="jit")
    assert context_of(model).learned.inputs.preprocess == expected.get(how, OWN.preprocess)
    model.compile("sgd", preprocess=Normalize((0.0,) * 3, (1.0,) * 3), dispatch="jit")
    assert context_of(model).learned.inputs.preprocess == Normalize((0.0,) * 3, (1.0,) * 3)


Saved = tuple[dict[str, Any], dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Return the header and the arrays of a saved model."""
    path = tmp_path_factory.mktemp("saved") / "net.safetensors"
    resfit.Model(small()).save(path)
    with safetensors.safe_open(path, framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return json.loads(file.metadata()["resfit"]), arrays


@pytest.mark.parametrize(
    "entry",
    [
        {"transforms": {"resize": 8}},
        {"transforms": {"resize": 8, "crop": 9}},
        {"transforms": {"resize": 8, "crop": 8, "std": [0, 0, 0]}},
        {"transforms": {"resize": 8, "crop": 8, "mean": 3}},
        {"transforms": "os.system"},
        {"class_names": "cat"},
        {"class_names": [1, 2, 3]},
        {"class_names": 7},
    ],
    ids=str,
)
def test_a_file_with_invalid_transforms_raises(entry: dict[str, Any], saved: Saved, tmp_path: Path) -> None:
    header, arrays = saved
    safetensors.numpy.save_file(arrays, tmp_path / "net.safetensors", {"resfit": json.dumps(header | entry)})
    with pytest.raises(SavedModelError, match="damaged"):
        resfit.load(tmp_path / "net.safetensors")


@pytest.mark.parametrize("missing", ["transforms", "class_names"])
def test_a_file_of_an_earlier_version_has_neither(missing: str, saved: Saved, tmp_path: Path) -> None:
    header, arrays = saved
    less = {name: value for name, value in header.items() if name != missing}
    safetensors.numpy.save_file(arrays, tmp_path / "net.safetensors", {"resfit": json.dumps(less)})
    loaded = resfit.load(tmp_path / "net.safetensors")
    assert (loaded.transforms, loaded.class_names) == (None, None)


def test_evaluation_after_loading_equals_that_of_the_trained_model(tmp_path: Path) -> None:
    model = resfit.Model(small())
    model.transforms = OWN
    model.compile("sgd", learning_rate=0.1, dispatch="jit")
    x, y = OWN.batch(photographs()), labels(6)
    fit(model, x, y)
    model.save(tmp_path / "net.safetensors")
    loaded = resfit.load(tmp_path / "net.safetensors")
    loaded.compile("sgd", learning_rate=0.1, dispatch="jit")
    assert loaded.evaluate(x, y, verbose=0) == model.evaluate(x, y, verbose=0)


def test_transforms_take_effect_at_the_next_compile_and_never_silently_later() -> None:
    model = compiled(small())
    model.transforms = OWN
    with pytest.raises(resfit.errors.NotCompiledError):
        fit(model, OWN.batch(photographs()), labels(6))


def test_values_that_are_not_transforms_raise() -> None:
    model = resfit.Model(small())
    with pytest.raises(CompileError, match="transforms_for"):
        model.transforms = "timm/resnet50.a1_in1k"
