"""The recipes by name. Every value is that of the source; `left_out` lists what resfit does not do."""

from resfit import augment
from resfit._utils.keywords import checked
from resfit._utils.suggest import did_you_mean
from resfit.errors import CompileError
from resfit.recipes.training_recipe import TrainingRecipe
from resfit.schedules import OneCycle, Step, WarmupCosine
from resfit.transforms.transforms import MEAN, STD

# Means and standard deviations of CIFAR-10's channels, as in airbench94.py.
_CIFAR_MEAN, _CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

_IDENTITY = "Residual blocks start as identities (zero_init_last); in the source they do not."
_BILINEAR = "Images are resized bilinearly; the source uses bicubic interpolation."
_RSB_LEFT_OUT = (
    _BILINEAR,
    "RandAugment applies one operation to every image; timm applies each of two with probability 0.5. The magnitude "
    "has no noise (mstd0.5), and timm's SolarizeAdd, Invert and increasing Posterize are missing.",
    "Operations that move pixels interpolate bilinearly and fill with black; timm's draw bilinear or bicubic "
    "interpolation and fill with the mean color.",
    "timm's LAMB clips the norm of the whole gradient at 1; resfit's does not.",
    "The warm-up starts at 0; timm's starts at 0.0001.",
)
_ONE_CROP = "The copies of an image share the random crop, which is made while the file is decoded."


def _rsb(name: str, **changes: object) -> TrainingRecipe:
    """Return a recipe of "ResNet strikes back"; the fields that do not change are the same in its three recipes."""
    fields = {
        "name": name,
        "source": f"Wightman, Touvron, Jégou: ResNet strikes back, procedure {name[-2:].upper()} of table 2",
        "url": "https://arxiv.org/abs/2110.00476",
        "data": "imagenet",
        "network": "resnet50",
        "optimizer": "lamb",
        "scaling": "sqrt",
        "batch_size": 2048,
        "test_size": 224,
        "test_crop": 0.95,
        "cutmix": 1.0,
        "binary": True,
        "mean": MEAN,
        "std": STD,
        **changes,
    }
    return TrainingRecipe(**fields)  # type: ignore[arg-type]


_ALL = (
    _rsb(
        "rsb-a1",
        accuracy=0.804,
        learning_rate=5e-3,
        schedule=WarmupCosine(warmup_epochs=5, end=1e-6 / 5e-3),
        weight_decay=0.01,
        epochs=600,
        train_size=224,
        augment=(augment.flip(), augment.rand_augment(n=1, m=21, interpolation="bilinear")),
        mixup=0.2,
        repeats=3,
        label_smoothing=0.1,
        drop_path=0.05,
        left_out=(
            *_RSB_LEFT_OUT,
            _ONE_CROP,
            "Labels are smoothed after the threshold of 0.2; in timm before, so the threshold undoes it.",
        ),
    ),
    _rsb(
        "rsb-a2",
        accuracy=0.798,
        learning_rate=5e-3,
        schedule=WarmupCosine(warmup_epochs=5, end=1e-6 / 5e-3),
        weight_decay=0.02,
        epochs=300,
        train_size=224,
        augment=(augment.flip(), augment.rand_augment(n=1, m=21, interpolation="bilinear")),
        mixup=0.1,
        repeats=3,
        drop_path=0.05,
        left_out=(*_RSB_LEFT_OUT, _ONE_CROP),
    ),
    _rsb(
        "rsb-a3",
        accuracy=0.781,
        learning_rate=8e-3,
        schedule=WarmupCosine(warmup_epochs=5, end=1e-6 / 8e-3),
        weight_decay=0.02,
        epochs=100,
        train_size=160,
        augment=(augment.flip(), augment.rand_augment(n=1, m=18, interpolation="bilinear")),
        mixup=0.1,
        left_out=_RSB_LEFT_OUT,
    ),
    TrainingRecipe(
        name="torchvision-v1",
        source="torchvision, references/classification/README.md, default parameters of 8 GPUs; IMAGENET1K_V1",
        url="https://github.com/pytorch/vision/tree/main/references/classification",
        data="imagenet",
        network="resnet50",
        accuracy=0.7613,
        optimizer="sgd",
        learning_rate=0.1,
        schedule=Step(at=(30, 60), drop=0.1),
        weight_decay=1e-4,
        decays_all=True,
        epochs=90,
        batch_size=8 * 32,
        train_size=224,
        test_size=224,
        test_crop=224 / 256,
        augment=(augment.flip(),),
        mean=MEAN,
        std=STD,
        left_out=(_IDENTITY,),
    ),
    TrainingRecipe(
        name="torchvision-v2",
        source="torchvision, references/classification, and Vryniotis: How to train state-of-the-art models using "
        "TorchVision's latest primitives (2021); IMAGENET1K_V2",
        url="https://pytorch.org/blog/how-to-train-state-of-the-art-models-using-torchvision-latest-primitives/",
        data="imagenet",
        network="resnet50",
        accuracy=0.80858,
        optimizer="sgd",
        learning_rate=0.5,
        schedule=WarmupCosine(warmup_epochs=5),
        weight_decay=2e-5,
        epochs=600,
        batch_size=8 * 128,
        train_size=176,
        test_size=224,
        test_crop=224 / 232,
        augment=(augment.flip(), augment.trivial_augment(interpolation="bilinear")),
        erasing=0.1,
        mixup=0.2,
        cutmix=1.0,
        repeats=4,
        label_smoothing=0.1,
        ema=1 - (1 - 0.99998) * 8 * 128 / 600,  # train.py multiplies 1 - decay by the batch size and divides by epochs
        mean=MEAN,
        std=STD,
        left_out=(
            _ONE_CROP,
            "The average of the weights changes in every step; the source's changes in every 32nd, by as much.",
            "The average starts with the weights after the warm-up in the source, and with the first ones here.",
            "Biases decay in the source, and norms do not; here neither does.",
            "The warm-up starts at 0; the source's starts at 0.005. The learning rate changes in every step; the "
            "source's in every epoch.",
            _IDENTITY,
        ),
    ),
    TrainingRecipe(
        name="he-cifar",
        source="He, Zhang, Ren, Sun: Deep residual learning for image recognition, section 4.2 and table 6",
        url="https://arxiv.org/abs/1512.03385",
        data="cifar10",
        network="resnet20",
        accuracy=0.9125,
        optimizer="sgd",
        learning_rate=0.1,
        schedule=Step(at=(82, 123), drop=0.1),  # 32,000 and 48,000 of 64,000 iterations, of 50,000 images
        weight_decay=1e-4,
        decays_all=True,
        epochs=164,
        batch_size=128,
        augment=(augment.pad_crop(4), augment.flip()),
        mean=_CIFAR_MEAN,
        std=_CIFAR_STD,
        left_out=(
            "Channels are standardized; the source subtracts the mean of each pixel.",
            "The source starts ResNet-110 with a learning rate of 0.01 until the training error is below 80 %.",
            _IDENTITY,
        ),
    ),
    TrainingRecipe(
        name="wrn-cifar",
        source="Zagoruyko, Komodakis: Wide residual networks, section 3 and table 5",
        url="https://arxiv.org/abs/1605.07146",
        data="cifar10",
        network="wrn_28_10",
        accuracy=0.96,
        optimizer="sgd",
        learning_rate=0.1,
        nesterov=True,
        schedule=Step(at=(60, 120, 160), drop=0.2),
        weight_decay=5e-4,
        decays_all=True,
        epochs=200,
        batch_size=128,
        augment=(augment.pad_crop(4, mode="reflect"), augment.flip()),
        dropout=0.0,  # that of table 5; the default of the network is 0.3, that of the section about dropout
        mean=_CIFAR_MEAN,
        std=_CIFAR_STD,
        left_out=(_IDENTITY,),
    ),
    TrainingRecipe(
        name="airbench-cifar",
        source="Jordan: 94% on CIFAR-10 in 3.29 seconds on a single GPU (arXiv 2404.00498); legacy/airbench94.py",
        url="https://github.com/KellerJordan/cifar10-airbench",
        data="cifar10",
        network="airbench94",
        accuracy=0.9401,
        optimizer="sgd",
        learning_rate=11.5 / (1 + 1 / (1 - 0.85)),  # of a mean loss: the source sums, and divides by Nesterov's factor
        momentum=0.85,
        nesterov=True,
        schedule=OneCycle(rise=0.23, start=0.2, end=0.07),
        weight_decay=0.0153 / 11.5,
        decays_all=True,
        epochs=10,
        batch_size=1024,
        augment=(augment.alternating_flip(), augment.pad_crop(2, mode="reflect")),
        label_smoothing=0.2,
        mean=_CIFAR_MEAN,
        std=_CIFAR_STD,
        left_out=(
            "The network of the source: no residual blocks, a first convolution that whitens patches, convolutions "
            "that start as identities, GELU, BatchNorms with momentum 0.6 and no trained scales, logits divided by 9.",
            "Biases of norms learn 64 times as fast in the source.",
            "The learning rate rises and falls along cosines; along lines in the source.",
            "The slow average of the weights (Lookahead), whose share rises in the source; optax has a constant one.",
            "The average of the logits over six views of each test image: evaluate(tta='flip+shift') has that of the "
            "probabilities.",
            "The source trains for 9.9 epochs.",
        ),
    ),
    TrainingRecipe(
        name="fine-tune",
        source="resfit, recipes/finetune.py, the training of all layers; learning rates by depth: Howard and Ruder",
        url="https://arxiv.org/abs/1801.06146",
        data="any",
        network="any",
        accuracy=None,
        optimizer="adamw",
        learning_rate=0.003,
        scaling="sqrt",
        schedule=OneCycle(),
        weight_decay=0.05,
        depth_decay=0.75,
        epochs=5,
        batch_size=32,
        left_out=("The training of the new last layer alone, before: `Model.fine_tune` does both.",),
    ),
)
_BY_NAME = {recipe.name: recipe for recipe in _ALL}


@checked("function arguments")
def names() -> list[str]:
    """Return the names of all recipes.

    Example:
      >>> names()[:3]
      ['rsb-a1', 'rsb-a2', 'rsb-a3']
    """
    return list(_BY_NAME)


@checked("function arguments")
def get(name: str) -> TrainingRecipe:
    """Return a recipe.

    Args:
      name: one of `names()`: "rsb-a1", "rsb-a2", "rsb-a3" (ResNet strikes back), "torchvision-v1", "torchvision-v2",
        "he-cifar", "wrn-cifar", "airbench-cifar" or "fine-tune".

    Raises:
      CompileError: for an unknown name.

    Example:
      >>> recipe = get("rsb-a3")
      >>> recipe.epochs, recipe.batch_size, recipe.train_size, recipe.test_size
      (100, 2048, 160, 224)
    """
    if not isinstance(name, str) or name not in _BY_NAME:
        raise CompileError(f"Unknown recipe {name!r}. Expected one of {names()}.{did_you_mean(name, _BY_NAME)}")
    return _BY_NAME[name]
