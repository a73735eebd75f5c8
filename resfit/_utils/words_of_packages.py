"""The part of the table of words for names that users read from resfit itself and from its subpackages."""

from collections.abc import Mapping
from typing import Final

# Place -> answer -> words, as in `words.WORDS`.
OF_PACKAGES: Final[Mapping[str, Mapping[str, str]]] = {
    "augment": {
        "`resfit.augment.flip()`": "RandomFlip RandomHorizontalFlip HorizontalFlip",
        "`resfit.augment.pad_crop(4)`": "RandomTranslation",
        "`resfit.augment.random_resized_crop(224)`": "RandomCrop RandomResizedCrop RandomZoom",
        "`resfit.augment.color_jitter(...)`": (
            "RandomBrightness RandomContrast RandomSaturation RandomHue RandomColorJitter ColorJitter"
        ),
        "`resfit.augment.random_erasing()`": "Cutout",
        "`resfit.augment.rotate(degrees)`": "RandomRotation",
        "`resfit.augment.affine(...)`": "RandomShear RandomAffine",
        "`resfit.augment.rand_augment(n=2, m=9)`": "RandAugment randaugment",
        "`resfit.augment.trivial_augment()`": "TrivialAugment TrivialAugmentWide",
        "`resfit.augment.auto_augment(policy)`": "AutoAugment autoaugment",
        "`resfit.augment.gray()`": "RandomGrayscale Grayscale",
        "a list, `compile(augment=[...])`": "Compose Sequential Pipeline",
        "`compile(preprocess=...)`": "Rescaling Normalize Normalization ToTensor ToDtype",
        "`compile(augment='imagenet')`, or a list of functions": "aug_transforms ImageDataGenerator create_transform",
        "a function `(key, x, y) -> (x, y)`": (
            "RandomVerticalFlip AugMix GaussianBlur"
        ),
    },
    "schedules": {
        "`resfit.schedules.Cosine(...)`": "CosineDecay CosineAnnealing CosineAnnealingLR",
        "`resfit.schedules.WarmupCosine(...)`": "warmup CosineLRScheduler",
        "`resfit.schedules.Step(...)`": "StepLR MultiStepLR",
        "`resfit.schedules.OneCycle(...)`": "OneCycleLR",
        "`resfit.schedules.Linear(...)`": "LinearLR LinearDecay",
        "`learning_rate=optax.exponential_decay(...)`": "ExponentialDecay ExponentialLR exponential",
        "`learning_rate=optax.polynomial_schedule(...)`": "PolynomialDecay PolynomialLR polynomial",
        "`learning_rate=optax.piecewise_constant_schedule(...)`": "PiecewiseConstantDecay",
        "`learning_rate=optax.sgdr_schedule(...)`": "CosineDecayRestarts CosineAnnealingWarmRestarts",
        "`resfit.callbacks.ReduceLROnPlateau`": "ReduceLROnPlateau plateau",
        "`learning_rate=` with a function of the step": "LambdaLR",
    },
    "transforms": {
        "`resfit.transforms.Transforms(resize=..., crop=..., mean=..., std=...)`": (
            "Resize CenterCrop CenterCropResize ToTensor Normalize Rescaling Resizing Compose"
        ),
    },
    "data": {
        "`fit(x, y)` with arrays, or any iterable of (x, y) batches": (
            "DataLoader Dataset TensorDataset create_loader ImageDataLoaders DataBlock DataModule LightningDataModule"
        ),
        "`resfit.data.folder(path)`": "image_dataset_from_directory flow_from_directory",
    },
    "package": {
        "`resfit.Model(module)` with any `flax.nnx.Module`": "Sequential Functional Input Layer layers",
        "`resfit.Model(module)`, then `compile` and `fit`": (
            "Trainer LightningModule Learner vision_learner cnn_learner"
        ),
        "`resfit.create_model(name, num_classes=...)`; `resfit.list_models()` lists the names": "models applications",
        "`model.save(path)` and `resfit.load(path)`": "save_model saving",
        "`resfit.optimizers`, or optax": "optim",
        "`resfit.create_model(..., rngs=0)` and `compile(seed=0)`": "set_random_seed seed_everything manual_seed",
        "`resfit.data.folder(path)` for folders of images, `compile(seed=0)` for seeds, `model.summary()`": "utils",
        "`resfit.data`": "datasets",
        "`resfit.data.folder(path)`": "image_dataset_from_directory",
        "nothing: class numbers are enough, one-hot labels are not needed": "to_categorical",
        "`from resfit.sklearn import Classifier`": "wrappers KerasClassifier SKLearnClassifier NeuralNetClassifier",
        "`resfit.search(make, space, data)`": "tune RandomSearch Hyperband GridSearch",
        "`jax.numpy`": "backend ops",
        "options of the layers of `flax.nnx`; weight decay: `resfit.optimizers.adamw(1e-3, weight_decay=0.05)`": (
            "initializers regularizers constraints"
        ),
    },
}  # fmt: skip
