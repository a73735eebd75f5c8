"""The part of the table of words for names that users read from resfit itself and from its subpackages."""

from collections.abc import Mapping
from typing import Final

_FUNCTION = "a function of (outputs, labels) that returns one value per example"

# Place -> answer -> words, as in `words.WORDS`.
OF_PACKAGES: Final[Mapping[str, Mapping[str, str]]] = {
    "augment": {
        "`resfit.augment.flip()`": "RandomFlip RandomHorizontalFlip HorizontalFlip random_flip horizontal_flip",
        "`resfit.augment.pad_crop(4)`": "RandomTranslation",
        "`resfit.augment.random_resized_crop(224)`": "RandomCrop RandomResizedCrop random_crop",
        "`resfit.augment.color_jitter(...)`": (
            "RandomBrightness RandomContrast RandomSaturation RandomHue RandomColorJitter ColorJitter"
        ),
        "`resfit.augment.random_erasing()`": "Cutout RandomErasing",
        "`resfit.augment.rotate(degrees)`": "RandomRotation",
        "`resfit.augment.affine(...)`": "RandomShear RandomAffine RandomZoom",
        "`resfit.augment.rand_augment(n=2, m=9)`": "RandAugment randaugment",
        "`resfit.augment.aug_mix()`": "AugMix augmix augment_and_mix",
        "`resfit.augment.repeated_augmentation(k)`": "RASampler RepeatAugSampler RepeatedAugmentation",
        "`resfit.augment.trivial_augment()`": "TrivialAugment TrivialAugmentWide",
        "`resfit.augment.trivial_augment()` or `rand_augment(n=1)`, which have it among their operations": (
            "AutoContrast Equalization RandomPosterization Solarization RandomSharpness RandomColorDegeneration "
            "RandomAutocontrast RandomEqualize RandomPosterize RandomSolarize RandomAdjustSharpness"
        ),
        "`resfit.augment.auto_augment(policy)`": "AutoAugment autoaugment",
        "`resfit.augment.gray()`": "RandomGrayscale Grayscale",
        "a list, `compile(augment=[...])`": "Compose Sequential Pipeline",
        "`compile(preprocess=...)`": "Rescaling Normalize Normalization ToTensor ToDtype",
        "`compile(augment='imagenet')`, or a list of functions": "aug_transforms ImageDataGenerator create_transform",
        "a function `(key, x, y) -> (x, y)`": (
            "RandomVerticalFlip GaussianBlur RandomGaussianBlur RandomInvert RandomPerspective ElasticTransform "
            "RandomElasticTransform"
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
        "`resfit.data.folder(path)`": "image_dataset_from_directory flow_from_directory from_folder",
        "`resfit.data.load(name)`, such as `resfit.data.load('cifar10')`": (
            "load_data fetch load_dataset MNIST FashionMNIST CIFAR10 CIFAR100 mnist fashion_mnist cifar10 cifar100"
        ),
        "`fit(batch_size=..., shuffle=...)`": "BatchSampler RandomSampler",
        "`folder(path).split(0.2)`": "random_split train_test_split",
    },
    "preprocess": {
        "`compile(preprocess=resfit.preprocess.Normalize(mean, std))`": (
            "Normalization normalize preprocess_input MeanStd"
        ),
        "nothing: uint8 images become float32 in [0, 1]": "Rescaling ToTensor ToDtype ToImage PILToTensor",
        "`resfit.data.folder(path, size=..., crop=...)`, or `resfit.transforms.Transforms`": (
            "Resize Resizing CenterCrop Compose"
        ),
    },
    "plots": {
        "`resfit.plots.curves(history)`, or `history.plot()`": (
            "plot_history history plot_loss plot_metrics plot_curves learning_curves"
        ),
        "`resfit.plots.batch(x, y, classes)`, or `folder(path).show()`": (
            "show_batch plot_images show_images imshow images plot_batch plot_image_gallery make_grid"
        ),
        "`resfit.plots.confusion_matrix(...)`": "plot_confusion_matrix ConfusionMatrixDisplay",
        "`resfit.plots.mistakes(...)`": "plot_top_losses top_losses show_results most_confused",
        "`resfit.find_learning_rate(model, x, y)` and `resfit.plots.learning_rate_search`": "lr_find plot_lr_find",
        "`resfit.plots.learning_rate_schedule(...)`": "plot_lr lr_schedule plot_lr_schedule",
        "`model.summary()`": "plot_model model_to_dot",
    },
    "distributed": {
        "`resfit.distributed.initialize()`, which every process calls first": (
            "init_process_group init initialize_process_group launch spawn"
        ),
        "nothing: `fit` uses the devices of all processes": (
            "DistributedDataParallel DataParallel FullyShardedDataParallel MirroredStrategy DistributedSampler "
            "DataParallelStrategy ModelParallel set_distribution all_reduce broadcast barrier all_gather "
            "destroy_process_group"
        ),
        "`jax.process_index()`, `jax.process_count()` and `jax.devices()`": (
            "get_rank get_world_size rank world_size local_rank list_devices is_initialized"
        ),
    },
    "loss arguments": {
        "`resfit.losses.CrossEntropy(label_smoothing=0.1)`": "label_smoothing smoothing",
        "`resfit.losses.CrossEntropy(ignore_index=...)`": "ignore_index ignore_class",
        "`resfit.losses.Focal(gamma=2.0)`": "gamma alpha",
        "`resfit.losses.BinaryCrossEntropy(target_threshold=...)`": "target_threshold",
        "`resfit.losses.distillation(logits, teacher_logits, temperature=4.0)`": "temperature",
        "nothing: losses and metrics read logits": "from_logits apply_softmax",
        "nothing: a loss returns one value per example, and `fit` averages them": "reduction size_average reduce",
        "nothing: classes are on the last axis": "axis dim",
        "nothing: losses are computed in float32 or wider": "dtype",
        "nothing: logs name a loss after its output": "name",
        "`fit(class_weight=...)` or `fit(sample_weight=...)`": "weight weights class_weight sample_weight pos_weight",
        "`loss(outputs, labels)` by position": "y_true y_pred input inputs target preds predictions",
        f"`optax.losses.huber_loss(outputs, labels, delta=...)` in {_FUNCTION}": "delta beta",
    },
    "weights": {
        "`resfit.create_model(name, num_classes=..., weights=...)`": (
            "get_model get_weight get_model_weights load_state_dict_from_url load_pretrained load_model_weights "
            + " ".join(f"ResNet{depth}_Weights" for depth in (18, 34, 50, 101, 152))
        ),
        "`resfit.weights.load(net, path)`": "load_weights load_checkpoint",
        "`resfit.weights.save(net, path)`": "save_weights",
    },
    "networks": {
        **{
            f"`resfit.create_model('resnet{depth}', num_classes=...)`": f"resnet{depth} ResNet{depth}"
            for depth in (18, 34, 50, 101, 152)
        },
        **{
            f"`resfit.create_model('resnetv2_{depth}', num_classes=...)`": f"ResNet{depth}V2 resnetv2_{depth}"
            for depth in (50, 101, 152)
        },
        **{
            f"`resfit.create_model('{name}', num_classes=...)`": name
            for name in (
                "resnet20", "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2",
                "wide_resnet101_2",
            )
        },
        "`resfit.nets.BottleneckBlock`": "Bottleneck",
        "`resfit.nets.SqueezeExcite`": "SqueezeExcitation SEModule SEBlock",
        "`flax.nnx`, whose modules `resfit.Model` trains": "Conv2D Conv2d Dense Linear Dropout MaxPool2d Flatten",
    },
    "package": {
        "`resfit.Model(module)` with any `flax.nnx.Module`": "Sequential Functional Input Layer layers",
        "`resfit.Model(module)`, then `compile` and `fit`": (
            "Trainer LightningModule Learner vision_learner cnn_learner"
        ),
        "`resfit.create_model(name, num_classes=...)`; `resfit.list_models()` lists the names": "models applications",
        "`model.save(path)` and `resfit.load(path)`": "save_model saving",
        "`resfit.optimizers`, or optax": "optim",
        "`resfit.create_model(..., rngs=0)` and `compile(seed=0)`": (
            "set_random_seed seed_everything manual_seed set_seed"
        ),
        "`resfit.data.folder(path)` for folders of images, `compile(seed=0)` for seeds, `model.summary()`": "utils",
        "`resfit.data`": "datasets",
        "`resfit.data.load(name)`": "load_data load_dataset",
        "`resfit.plots`": "plot visualization",
        "`resfit.weights`": "checkpoint",
        "`resfit.data.folder(path)`": "image_dataset_from_directory",
        "nothing: class numbers are enough, one-hot labels are not needed": "to_categorical",
        "`from resfit.sklearn import Classifier`": (
            "wrappers Classifier KerasClassifier SKLearnClassifier NeuralNetClassifier"
        ),
        "`resfit.search(make, space, data)`": (
            "tune tuner tuners Tuner keras_tuner KerasTuner RandomSearch Hyperband GridSearch BayesianOptimization"
        ),
        "`resfit.Ensemble(make, members=8)`": "DeepEnsemble EnsembleModel VotingClassifier KFold cross_validate",
        "`resfit.weights.average(files)`": "average_checkpoints ModelSoup model_soup AveragedModel swa_utils",
        "`jax.numpy`": "backend ops",
        "options of the layers of `flax.nnx`; weight decay: `resfit.optimizers.adamw(1e-3, weight_decay=0.05)`": (
            "initializers regularizers constraints"
        ),
    },
}  # fmt: skip
