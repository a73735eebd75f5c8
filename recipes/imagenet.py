"""ImageNet, or any photographs in its format, by a named recipe: ResNet-50 in 100 epochs with "ResNet strikes back" A3.

    python recipes/imagenet.py --data imagenet             # the folders imagenet/train/CLASS and imagenet/val/CLASS
    python recipes/imagenet.py --data imagenet --dry-run   # memory, steps and time of the run
    python recipes/imagenet.py --source huggingface --data ILSVRC/imagenet-1k   # streamed from the Hub
    python recipes/imagenet.py --source tfds --data imagenet2012                # prepared in the format array_record
    python recipes/imagenet.py --data imagenet --evaluate timm/resnet50.a3_in1k --size 224 --crop 0.95
    python recipes/imagenet.py --data imagenet --recipe torchvision-v1 --batch-size 1024 --epochs 45

Install with `pip install "resfit[folder]"`, `"resfit[hf]"` or `"resfit[tfds]"`. A stopped run, also by Ctrl-C, resumes
by the same command. All devices of the machine share the batch. For several machines run the command on each of them
with --coordinator HOST:PORT --processes N --process I, or with --cluster under SLURM, Open MPI and on TPU pods.

Expected accuracy of ResNet-50, in percent. These are the numbers of the sources; resfit has not trained on ImageNet:

    recipe          epochs  batch  pixels  accuracy  source
    rsb-a3             100   2048     160      78.1  Wightman et al., arXiv 2110.00476, table 2
    rsb-a2             300   2048     224      79.8  the same
    rsb-a1             600   2048     224      80.4  the same
    torchvision-v1      90    256     224      76.1  torchvision, IMAGENET1K_V1
    torchvision-v2     600   1024     176      80.9  torchvision, IMAGENET1K_V2

`resfit.recipes.get(NAME).left_out` lists what differs from the source. docs/recipes.md estimates time and cost.
"""

import argparse
import dataclasses
import datetime
from pathlib import Path
from typing import Any

import jax
from common import add_options, positive, require_writable, start, write_results
from runs import find_results, folder_of, label

import resfit
from resfit import recipes
from resfit.callbacks import Checkpoint, Throughput
from resfit.errors import SavedModelError
from resfit.transforms import FolderTransforms

NAMES = [name for name in recipes.names() if recipes.get(name).data != "any"]
SPLITS = {"folder": ("train", "val"), "huggingface": ("train", "validation"), "tfds": ("train", "validation")}
CROP = 224 / 256  # of the shorter side, if neither the recipe nor the weights have one


def read(options: argparse.Namespace, split: int, **arguments: Any) -> Any:
    """Return the training (0) or validation (1) images of the source, with size and crop."""
    name = SPLITS[options.source][split]
    if options.source == "folder":
        return resfit.data.folder(Path(options.data) / name, **arguments)
    if options.source == "tfds":
        return resfit.data.tfds(options.data, name, data_dir=options.data_dir, **arguments)
    import datasets

    stream = datasets.load_dataset(options.data, split=name, streaming=True, cache_dir=options.data_dir)
    return resfit.data.huggingface(stream, mode="RGB", **arguments)


def classes_of(data: Any) -> tuple[str, ...]:
    """Return the class names of a source; exit if there are none."""
    classes = resfit.data.as_batches(data, geometry=resfit.data.Geometry(1)).classes
    if classes is None:
        raise SystemExit(
            "The dataset has labels without class names. Expected a folder for each class, or labels of the type "
            "ClassLabel, which states the number of classes: dataset.cast_column('label', ClassLabel(names=[...]))."
        )
    return classes


def chosen_recipe(options: argparse.Namespace) -> recipes.TrainingRecipe:
    """Return the recipe with the sizes, epochs and batch size of the command."""
    recipe = recipes.get(options.recipe).replace(epochs=options.epochs, batch_size=options.batch_size)
    return dataclasses.replace(
        recipe,
        train_size=options.train_size or recipe.train_size or 224,
        test_size=options.size or recipe.test_size or 224,
        test_crop=options.crop or recipe.test_crop or CROP,
    )


def network(name: str, num_classes: int, seed: int, **arguments: Any) -> Any:
    """Return a new network of the zoo."""
    return resfit.create_model(name, num_classes=num_classes, rngs=seed, **arguments)


def model_of(weights: str, name: str) -> resfit.Model:
    """Return the model of a file of `Model.save`, or of a name or file that `create_model(weights=...)` reads."""
    if Path(weights).is_file():
        try:
            return resfit.load(weights)
        except SavedModelError as error:
            print(f"{weights} is no file of Model.save, so it is read as weights of {name}: {error}")
    named = weights.rpartition("/")[2].partition(".")[0]  # timm/resnet50.a3_in1k
    name = named if named in resfit.list_models() else name
    return resfit.Model(resfit.create_model(name, weights=weights))


def view(model: resfit.Model, size: int | None, crop: float | None) -> tuple[int, float]:
    """Return size and crop of the validation images: those given, or those of the weights."""
    match model.transforms:
        case resfit.transforms.Transforms(crop=pixels, resize=resize):
            found = pixels, pixels / resize
        case FolderTransforms(size=(int() as pixels, _), crop=share):
            found = pixels, share if isinstance(share, float) else CROP
        case _:
            found = 224, CROP
    return size or found[0], crop or found[1]


def evaluate(options: argparse.Namespace) -> None:
    """Print the accuracy of any weights on the validation images."""
    model = model_of(options.evaluate, options.network)
    size, crop = view(model, options.size, options.crop)
    val = read(options, 1, size=size, crop=crop)
    outputs, classes = model.module.spec.num_classes, classes_of(val)
    if model.class_names is None and outputs != len(classes):
        raise SystemExit(
            f"{options.evaluate} has {outputs} classes, and the validation images have {len(classes)}. Expected the "
            "same classes in the same order, such as the 1,000 folders of ImageNet."
        )
    metrics = ["accuracy", "top_5_accuracy"] if outputs > 5 else ["accuracy"]
    model.compile(metrics=metrics, precision=options.precision)
    start = datetime.datetime.now()
    found = model.evaluate(val, batch_size=options.batch_size or 256, return_dict=True, verbose=2)
    seconds = (datetime.datetime.now() - start).total_seconds()
    scores = ", ".join(f"{name} {found[name]:.2%}" for name in metrics)
    print(f"{options.evaluate}: {scores}, at {size} pixels, crop {crop:.3g}. {seconds:.0f} s, compilation included.")


def train(options: argparse.Namespace) -> None:
    """Train, evaluate, and write the model and the line of the results."""
    recipe = chosen_recipe(options)
    data, val = read(options, 0, **recipe.train_data_arguments()), read(options, 1, **recipe.test_data_arguments())
    classes = classes_of(data)
    net = network(options.network, len(classes), options.seed, **recipe.network_arguments())
    model = resfit.Model(net)
    model.compile(
        **recipe.compile_arguments(net),
        metrics=["accuracy"],
        seed=options.seed,
        precision=options.precision,
        gradient_accumulation_steps=options.slices,
    )
    if options.dry_run:
        plan = resfit.dry_run(model, data, **recipe.fit_arguments())
        print(plan)
        if plan.seconds is not None:
            print(f"cost       {plan.seconds / 3600 * plan.devices:,.2g} device hours")
        return

    folder = folder_of(options.out, label(recipe, options.precision), options.network, recipe.epochs, options.seed)
    require_same_data(folder, options)
    speed, weights = Throughput(), "raw" if recipe.ema is None else "ema"
    model.validation_weights = weights
    saving = Checkpoint(folder, every=datetime.timedelta(minutes=10))
    model.fit(data, validation_data=val, callbacks=[speed, saving], verbose=2, resume=True, **recipe.fit_arguments())
    model.transforms = FolderTransforms(size=recipe.test_size, crop=recipe.test_crop)
    model.save(folder / "model.safetensors", weights=weights)
    accuracy = model.evaluate(val, batch_size=recipe.batch_size, return_dict=True, verbose=0, weights=weights)[
        "accuracy"
    ]
    print(f"Accuracy {accuracy:.2%} on the validation images, with the {weights} weights of the last epoch.")
    if recipe.accuracy is not None:
        print(f"The source has {recipe.accuracy:.2%} for {recipe.network} on {recipe.data}: {recipe.source}.")
    if speed.images_per_second:
        print(f"{speed.images_per_second[-1]:,.1f} images/s in the last epoch, on {jax.device_count()} device(s).")
    else:
        print(f"The run in {folder} was finished before, so nothing was trained.")
    if jax.process_index() == 0:
        record(options, recipe, model, {f"last epoch, {weights}": accuracy})
        print(f"The model is in {folder / 'model.safetensors'}.")


def require_same_data(folder: Path, options: argparse.Namespace) -> None:
    """Exit if the run of this folder trained on other images, also if it is finished: their number can be the same."""
    name = Path(options.data).resolve() if options.source == "folder" else options.data
    file, named = folder / "data.txt", f"{options.source} {name}"
    if file.exists() and (before := file.read_text()) != named:
        raise SystemExit(
            f"The run in {folder} trains on the images of {before!r}, got {named!r}. Pass another folder, --out "
            f"FOLDER. If the same images were moved, delete {file}."
        )
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(named)


def record(
    options: argparse.Namespace, recipe: recipes.TrainingRecipe, model: resfit.Model, accuracies: dict[str, float]
) -> None:
    """Write the line of the results, unless an earlier process of the run wrote it before it was stopped."""
    run = {
        "recipe": label(recipe, options.precision),
        "network": options.network,
        "data": f"{options.data} {SPLITS[options.source][1]}",
        "seed": options.seed,
        "epochs": recipe.epochs,
    }
    if not find_results(options.results, __file__, **run):
        minutes = round(sum(model.history.timings["epoch_seconds"]) / 60, 2)
        path = write_results(options.results, __file__, accuracies, **run, minutes=minutes)
        print(f"The result is in {path}.")


def share(text: str) -> float:
    """Return a share above 0 and at most 1, as the `type` of an option."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a share above 0 and at most 1, such as 0.875")
    return value


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", choices=list(SPLITS), default="folder", help="of the images (folder)")
    parser.add_argument("--data", default="imagenet", help="a folder, or the name of the dataset (imagenet)")
    parser.add_argument("--data-dir", type=Path, help="where TFDS keeps datasets, or the cache of Hugging Face")
    parser.add_argument("--recipe", choices=NAMES, default="rsb-a3", help="of the training (rsb-a3)")
    parser.add_argument("--network", default="resnet50", help="a name of resfit.list_models() (resnet50)")
    parser.add_argument("--epochs", type=positive, help="of the run (the recipe's)")
    parser.add_argument(
        "--batch-size", type=positive, help="over all devices; the learning rate follows (the recipe's)"
    )
    parser.add_argument(
        "--slices", type=positive, default=1, help="of each batch, one after another for less memory (1)"
    )
    parser.add_argument("--train-size", type=positive, help="pixels of a training image (the recipe's)")
    parser.add_argument(
        "--size", type=positive, help="pixels of a validation image (the recipe's, or that of the weights)"
    )
    parser.add_argument("--crop", type=share, help="share of the shorter side that validation keeps (as --size)")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto", help="(auto)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation (0)")
    parser.add_argument("--evaluate", metavar="WEIGHTS", help="a name or file; evaluate it and do not train")
    parser.add_argument(
        "--out", type=Path, default=Path("out/imagenet"), help="of checkpoints and model (out/imagenet)"
    )
    parser.add_argument("--cluster", action="store_true", help="connect the processes of SLURM, Open MPI or a TPU pod")
    parser.add_argument("--coordinator", help="address of the first process, host:port")
    parser.add_argument("--processes", type=positive, help="number of processes")
    parser.add_argument("--process", type=int, help="number of this process, from 0")
    add_options(parser)
    return parser


def main() -> None:
    """Connect the processes, if there are several; then train or evaluate."""
    parser = arguments()
    options = parser.parse_args()
    if options.evaluate and options.dry_run:
        parser.error("got --evaluate and --dry-run. Expected one of them: --dry-run estimates a training.")
    if not (options.evaluate or options.dry_run):
        require_writable(parser, options.out, options.results)
    connection = options.coordinator, options.processes, options.process
    if options.cluster or any(value is not None for value in connection):
        resfit.distributed.initialize(options.coordinator, processes=options.processes, process=options.process)
    if options.evaluate:
        evaluate(options)
    else:
        train(options)


if __name__ == "__main__":
    start(main)
