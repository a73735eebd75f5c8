"""Every value of a named recipe stands here once more, beside its source."""

import dataclasses
import pickle
from typing import Any

import jax
import numpy as np
import pytest

import resfit
from resfit import augment, losses, recipes, schedules
from resfit.errors import CompileError
from tests.helpers import images, labels

# Wightman et al. (arXiv 2110.00476), table 2. Repeated augmentation has 3 copies, crops and thresholds are those of
# timm's command for procedure A2: --aug-repeats 3 --bce-target-thresh 0.2 --warmup-epochs 5 --aa rand-m7-mstd0.5-inc1.
RSB = {
    "optimizer": "lamb", "batch_size": 2048, "test_size": 224, "test_crop": 0.95, "cutmix": 1.0, "binary": True,
    "erasing": 0, "ema": None, "decays_all": False,
}  # fmt: skip
# torchvision, references/classification/README.md: the table of default parameters, on 8 GPUs.
V1 = {
    "optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 1e-4, "epochs": 90,
    "batch_size": 256, "train_size": 224, "test_size": 224, "test_crop": 224 / 256, "mixup": None, "cutmix": None,
    "label_smoothing": 0, "erasing": 0, "ema": None, "drop_path": 0, "repeats": 1, "accuracy": 0.7613, "binary": False,
    "decays_all": True,
}  # fmt: skip
SOURCES: dict[str, dict[str, Any]] = {
    "rsb-a1": RSB | {
        "epochs": 600, "train_size": 224, "learning_rate": 5e-3, "weight_decay": 0.01, "label_smoothing": 0.1,
        "drop_path": 0.05, "repeats": 3, "mixup": 0.2, "accuracy": 0.804,
    },
    "rsb-a2": RSB | {
        "epochs": 300, "train_size": 224, "learning_rate": 5e-3, "weight_decay": 0.02, "label_smoothing": 0,
        "drop_path": 0.05, "repeats": 3, "mixup": 0.1, "accuracy": 0.798,
    },
    "rsb-a3": RSB | {
        "epochs": 100, "train_size": 160, "learning_rate": 8e-3, "weight_decay": 0.02, "label_smoothing": 0,
        "drop_path": 0, "repeats": 1, "mixup": 0.1, "accuracy": 0.781,
    },
    "torchvision-v1": V1,
    # The command of shufflenet_v2_x1_5 in the same README, and the blog post, which has it for ResNet-50. The accuracy
    # is that of ResNet50_Weights.IMAGENET1K_V2.
    "torchvision-v2": V1 | {
        "learning_rate": 0.5, "weight_decay": 2e-5, "epochs": 600, "batch_size": 1024, "train_size": 176,
        "test_crop": 224 / 232, "mixup": 0.2, "cutmix": 1.0, "label_smoothing": 0.1, "erasing": 0.1, "repeats": 4,
        "accuracy": 0.80858, "decays_all": False, "ema": pytest.approx(1 - 2e-5 * 1024 / 600, abs=1e-9),
    },
    # He et al. (arXiv 1512.03385), section 4.2 and table 6 (an error of 8.75 %).
    "he-cifar": {
        "optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 1e-4,
        "batch_size": 128, "epochs": 164, "label_smoothing": 0, "accuracy": 0.9125, "train_size": None,
        "decays_all": True, "mixup": None, "cutmix": None,
    },
    # Zagoruyko and Komodakis (arXiv 1605.07146), section 3 and table 5 (an error of 4.00 %).
    "wrn-cifar": {
        "optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4,
        "batch_size": 128, "epochs": 200, "label_smoothing": 0, "accuracy": 0.96, "train_size": None,
        "decays_all": True, "dropout": 0,
    },
    # legacy/airbench94.py: lr 11.5, momentum 0.85 and weight_decay 0.0153, "decoupled", which are
    # lr / (1 + 1 / (1 - m)) and wd / lr of PyTorch's SGD for the mean of the losses.
    "airbench-cifar": {
        "optimizer": "sgd", "learning_rate": pytest.approx(1.5), "momentum": 0.85, "nesterov": True,
        "weight_decay": pytest.approx(0.00133043, rel=1e-5), "batch_size": 1024, "epochs": 10, "label_smoothing": 0.2,
        "accuracy": 0.9401,
    },
    # recipes/finetune.py
    "fine-tune": {
        "optimizer": "adamw", "learning_rate": 0.003, "depth_decay": 0.75, "weight_decay": 0.05, "accuracy": None,
    },
}  # fmt: skip

# The learning rate at some epochs, as the sources draw it, in shares of the peak.
RATES = {
    "rsb-a1": {5: 1.0, 302.5: 0.5, 600: 2e-4},
    "rsb-a2": {5: 1.0, 152.5: 0.5, 300: 2e-4},
    "rsb-a3": {2.5: 0.5, 5: 1.0, 52.5: 0.5, 100: 1.25e-4},
    "torchvision-v1": {0: 1.0, 29.9: 1.0, 30: 0.1, 60: 0.01, 89.9: 0.01},
    "torchvision-v2": {5: 1.0, 302.5: 0.5, 600: 0.0},
    "he-cifar": {0: 1.0, 81.9: 1.0, 82: 0.1, 123: 0.01, 163.9: 0.01},  # 32,000 and 48,000 of 64,000 iterations
    "wrn-cifar": {0: 1.0, 60: 0.2, 120: 0.04, 160: 0.008, 199.9: 0.008},
    "airbench-cifar": {0: 0.2, 2.3: 1.0, 10: 0.07},
    "fine-tune": {1.5: 1.0},
}
AUGMENT = {
    "rsb-a1": [
        "repeated_augmentation(k=3)",
        "flip",
        "rand_augment(n=1, m=21, interpolation='bilinear'",
        "one_of(mixup(alpha=0.2",
        "cutmix(alpha=1.0",
    ],
    "rsb-a2": [
        "repeated_augmentation(k=3)",
        "flip",
        "rand_augment(n=1, m=21, interpolation='bilinear'",
        "one_of(mixup(alpha=0.1",
        "cutmix(alpha=1.0",
    ],
    "rsb-a3": [
        "flip",
        "rand_augment(n=1, m=18, interpolation='bilinear'",
        "one_of(mixup(alpha=0.1",
        "cutmix(alpha=1.0",
    ],
    "torchvision-v1": ["flip"],
    "torchvision-v2": [
        "repeated_augmentation(k=4)",
        "flip",
        "trivial_augment(interpolation='bilinear'",  # the default of presets.py
        "random_erasing(probability=0.1",
        "one_of(mixup(alpha=0.2",
        "cutmix",
    ],
    "he-cifar": ["pad_crop(pixels=4, mode='zeros'", "flip"],
    "wrn-cifar": ["pad_crop(pixels=4, mode='reflect'", "flip"],
    "airbench-cifar": ["alternating_flip", "pad_crop(pixels=2, mode='reflect'"],
    "fine-tune": [],
}


class Net:
    parts = ("stem", "head")


@pytest.mark.parametrize("name", recipes.names())
def test_every_value_is_that_of_the_source(name: str) -> None:
    recipe = recipes.get(name)
    assert {field: getattr(recipe, field) for field in SOURCES[name]} == SOURCES[name]
    schedule = recipe.compile_arguments(Net())["learning_rate"]
    for epoch, share in RATES[name].items():
        steps_per_pass = 1000 * recipe.repeats  # an epoch of the source has 1,000 steps
        rate = schedule.rate(round(1000 * epoch), 1000 * recipe.epochs, steps_per_pass)
        assert float(rate) == pytest.approx(share * recipe.learning_rate, rel=1e-3, abs=1e-7), epoch
    text, place = repr(recipe.compile_arguments(Net())["augment"]), 0
    for part in AUGMENT[name]:
        assert part in text[place:], text
        place = text.index(part, place)
    assert (text == "()") == (not AUGMENT[name])
    assert recipe.url.startswith("https://")
    assert all(sentence.endswith(".") for sentence in recipe.left_out)


def test_every_recipe_has_a_row_in_each_table() -> None:
    assert list(SOURCES) == list(RATES) == list(AUGMENT) == sorted(SOURCES, key=recipes.names().index)
    assert set(SOURCES) == set(recipes.names())


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("rsb-a1", losses.BinaryCrossEntropy(label_smoothing=0.1, target_threshold=0.2)),
        ("rsb-a3", losses.BinaryCrossEntropy(target_threshold=0.2)),
        ("torchvision-v2", losses.CrossEntropy(label_smoothing=0.1)),
        ("he-cifar", losses.CrossEntropy()),
    ],
)
def test_the_loss_is_that_of_the_recipe(name: str, loss: Any) -> None:
    assert recipes.get(name).compile_arguments()["loss"] == loss


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        (
            "torchvision-v1",
            {"batch_size": 1024},
            {"learning_rate": 0.4, "epochs": 90},
        ),  # linear, as torchvision's README
        ("rsb-a3", {"batch_size": 512}, {"learning_rate": 4e-3}),  # the square root
        ("rsb-a3", {"batch_size": 512, "scaling": "linear"}, {"learning_rate": 2e-3}),
        ("torchvision-v2", {"batch_size": 65536, "epochs": 1}, {"ema": None}),  # it would be of one step
        ("rsb-a3", {"batch_size": 512, "learning_rate": 2e-3}, {"learning_rate": 2e-3, "batch_size": 512}),
        ("torchvision-v1", {"epochs": 45}, {"schedule": schedules.Step(at=(15.0, 30.0)), "learning_rate": 0.1}),
        ("rsb-a3", {"epochs": 20}, {"schedule": schedules.WarmupCosine(warmup_epochs=2, end=1.25e-4)}),
        ("rsb-a3", {"epochs": 600}, {"schedule": schedules.WarmupCosine(warmup_epochs=5, end=1.25e-4)}),
        ("torchvision-v2", {"epochs": 300}, {"ema": pytest.approx(1 - 2e-5 * 1024 / 300)}),
        ("torchvision-v2", {"batch_size": 256}, {"ema": pytest.approx(1 - 2e-5 * 256 / 600)}),
        ("rsb-a1", {"drop_path": 0.1, "train_size": 128}, {"drop_path": 0.1, "train_size": 128, "epochs": 600}),
    ],
)
def test_another_length_and_batch_size_scale_the_recipe(
    name: str, changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    before = dataclasses.asdict(recipes.get(name))
    recipe = recipes.get(name).replace(**changes)
    assert {field: getattr(recipe, field) for field in expected} == expected
    recipe.compile_arguments()["learning_rate"].check(recipe.fit_arguments()["epochs"])
    assert dataclasses.asdict(recipes.get(name)) == before


@pytest.mark.parametrize("epochs", [1, 2, 7])
@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_fits_into_a_short_run(name: str, epochs: int) -> None:
    recipe = recipes.get(name).replace(epochs=epochs)
    recipe.compile_arguments(Net())["learning_rate"].check(recipe.fit_arguments()["epochs"])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: recipes.get("rsb_a3"), "Did you mean 'rsb-a3'"),
        (lambda: recipes.get("RSB-A1"), "Did you mean 'rsb-a1'"),
        (lambda: recipes.get(3), "Unknown recipe 3"),
        (lambda: recipes.get("he-cifar").replace(batchsize=3), "replace got 'batchsize'. Expected fields"),
        (lambda: recipes.get("he-cifar").replace(epochs=0), "epochs"),
        (lambda: recipes.get("he-cifar").replace(batch_size=1.5), "batch_size"),
        (lambda: recipes.get("he-cifar").replace(optimizer="adem"), "optimizer='adem'"),
        (lambda: recipes.get("he-cifar").replace(scaling="cube"), "scaling='cube'"),
        *[
            (lambda name=name, value=value: recipes.get("he-cifar").replace(**{name: value}), name)
            for name, value in [
                ("learning_rate", "fast"),
                ("learning_rate", -1),
                ("learning_rate", float("nan")),
                ("schedule", None),
                ("schedule", "cosine"),
                ("schedule", schedules.Cosine(peak=3.0)),
                ("repeats", 0),
                ("repeats", 1.5),
                ("weight_decay", -1),
                ("weight_decay", "x"),
                ("momentum", 2),
                ("train_size", -3),
                ("test_size", 0),
                ("test_crop", 95),
                ("augment", None),
                ("augment", "flip"),
                ("augment", augment.flip()),
                ("augment", ["flip"]),
                ("ema", 2),
                ("ema", 1.0),
                ("drop_path", 5),
                ("dropout", -0.1),
                ("nesterov", "no"),
            ]
        ],
        (lambda: recipes.get("fine-tune").compile_arguments(), r"compile_arguments\(net\)"),
    ],
)
def test_mistakes_raise(call: Any, said: str) -> None:
    with pytest.raises(CompileError, match=said):
        call()


def decayed(recipe: recipes.TrainingRecipe) -> dict[str, bool]:
    """Return for a kernel and a scale whether weight decay moves them."""
    optimizer = recipe.compile_arguments()["optimizer"](learning_rate=0.1)
    params = {"kernel": jax.numpy.ones((2, 2)), "scale": jax.numpy.ones(2)}
    zeros = jax.tree.map(jax.numpy.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    return {name: bool((np.asarray(update) != 0).any()) for name, update in updates.items()}


@pytest.mark.parametrize("name", ["rsb-a2", "torchvision-v1", "torchvision-v2", "wrn-cifar"])
def test_weight_decay_reaches_norms_only_if_the_source_does_so(name: str) -> None:
    recipe = recipes.get(name)
    assert decayed(recipe) == {"kernel": True, "scale": recipe.decays_all}


def test_momentum_is_that_of_the_recipe() -> None:
    recipe = dataclasses.replace(recipes.get("airbench-cifar"), weight_decay=0.0)
    optimizer = recipe.compile_arguments()["optimizer"](learning_rate=1.0)
    params = {"kernel": jax.numpy.zeros((1, 1))}
    state, steps = optimizer.init(params), []
    for _ in range(2):
        updates, state = optimizer.update(jax.tree.map(jax.numpy.ones_like, params), state, params)
        steps.append(-float(updates["kernel"][0, 0]))
    assert steps == pytest.approx([1.85, 1 + 0.85 * 1.85])  # Nesterov's steps with momentum 0.85


def trained(name: str) -> resfit.Model:
    gray = (images(32) * 40 + 128).clip(0, 255).astype(np.uint8)
    x, y = np.repeat(gray, 3, axis=3), labels(32)
    recipe = recipes.get(name).replace(epochs=2, batch_size=16)
    net = resfit.create_model("resnet20", num_classes=3, depths=(2,), widths=(4,), **recipe.network_arguments())
    model = resfit.Model(net)
    model.compile(**recipe.compile_arguments(net))
    history = model.fit(x, y, verbose=0, **recipe.fit_arguments())
    assert np.isfinite(history.history["loss"]).all()
    assert len(history.history["loss"]) == recipe.fit_arguments()["epochs"]
    assert model.keeps_averages == (recipe.ema is not None)
    return model


@pytest.mark.representatives("fine-tune")
@pytest.mark.parametrize(
    "name",
    [
        name if name in ("rsb-a3", "fine-tune") else pytest.param(name, marks=pytest.mark.exhaustive)
        for name in recipes.names()
    ],
)
def test_every_recipe_trains_and_its_model_is_pickled(name: str) -> None:
    model = trained(name)
    again = pickle.loads(pickle.dumps(model))
    for old, new in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_repeated_augmentation_keeps_the_steps_of_the_source() -> None:
    assert recipes.get("rsb-a2").fit_arguments() == {"epochs": 100, "batch_size": 682, "drop_remainder": True}
    assert recipes.get("torchvision-v2").fit_arguments() == {"epochs": 150, "batch_size": 256, "drop_remainder": True}
    assert recipes.get("rsb-a3").fit_arguments() == {"epochs": 100, "batch_size": 2048, "drop_remainder": True}
    assert recipes.get("rsb-a2").replace(epochs=1, batch_size=2).fit_arguments() == {
        "epochs": 1, "batch_size": 1, "drop_remainder": True,
    }  # fmt: skip


def test_the_sizes_are_arguments_of_the_data_functions() -> None:
    recipe = recipes.get("rsb-a3")
    assert recipe.train_data_arguments() == {"size": 160, "crop": "random"}
    assert recipe.test_data_arguments() == {"size": 224, "crop": 0.95}
    assert recipe.network_arguments() == {}
    assert recipes.get("rsb-a1").network_arguments() == {"drop_path": 0.05}
    assert recipes.get("he-cifar").train_data_arguments() == recipes.get("he-cifar").test_data_arguments() == {}
    wide = recipes.get("wrn-cifar").network_arguments()
    assert resfit.create_model("wrn_16_8", num_classes=2, widths=(4, 4, 4), **wide).spec.dropout == 0
    assert recipes.get("wrn-cifar").network in resfit.list_models()


def test_erased_rectangles_have_the_mean_color() -> None:
    erasing = next(
        one for one in recipes.get("torchvision-v2").compile_arguments()["augment"] if "erasing" in repr(one)
    )
    assert erasing == augment.random_erasing(0.1, fill=(123.675, 116.28, 103.53))
