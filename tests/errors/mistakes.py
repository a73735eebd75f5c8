"""Common user mistakes: the code, the error that it must raise, and required parts of the message.

`docs/errors.md` is made of these rows (`make errors`), and `test_mistakes.py` runs each of them.
"""

from typing import NamedTuple

from jax import errors as jax_errors

from resfit import errors

# The setup of every row. The page shows it once, at the top.
BEFORE = """\
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import resfit
from resfit import callbacks

x = np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype("float32")
y = np.arange(16) % 3

spec = resfit.nets.ResNetSpec(block="basic", depths=(1,), widths=(4,), stem="cifar", num_classes=3)
model = resfit.Model(resfit.nets.ResNet(spec, rngs=nnx.Rngs(0)))
model.compile("sgd", learning_rate=0.1, dispatch="jit")
"""

WARNING = "a warning in the log"


class Mistake(NamedTuple):
    """One mistake.

    Attributes:
      title: a short title, which is the name of the test and the heading on the page.
      code: runs after `BEFORE`, in an empty folder.
      error: the class of the error, or `WARNING` if the run continues and the log contains a warning.
      received: the part of the message that describes the received value.
      fix: the part of the message that describes the fix.
      trains: whether training steps precede the error, so that they change the model.
      foreign: whether Python or JAX writes the message and resfit adds a note. The page shows the note.
    """

    title: str
    code: str
    error: type[Exception] | str
    received: str
    fix: str
    trains: bool = False
    foreign: bool = False


DATA = [
    Mistake(
        "Images with the channels first, as in PyTorch",
        "model.fit(x.transpose(0, 3, 1, 2), y)",
        errors.LayoutError,
        "(16, 3, 8, 8)",
        "x.transpose(0, 2, 3, 1)",
    ),
    Mistake("One image without the batch axis", "model.predict(x[0])", errors.RankError, "(8, 8, 3)", "x[None]"),
    Mistake(
        "Gray images without a channel axis",
        "model.fit(x[..., 0], y)",
        errors.RankError,
        "(16, 8, 8)",
        "x[..., None]",
    ),
    Mistake(
        "Flat pixels, as in a CSV file or a DataFrame",
        "model.fit(x.reshape(16, -1), y)",
        errors.RankError,
        "(16, 192)",
        "x.reshape(-1, height, width, 3)",
    ),
    Mistake(
        "Wrong number of channels",
        'model.fit(np.zeros((16, 8, 8, 4), "uint8"), y)',
        errors.ChannelError,
        "4 channels",
        "in_channels=4",
    ),
    Mistake(
        "Images too small for the network",
        'network = resfit.create_model("resnet18", num_classes=3)\nnetwork(x)',
        errors.ImageTooSmallError,
        "a side of 8 pixels",
        "stem='cifar'",
    ),
    Mistake(
        "A list of images instead of an array",
        "model.fit(list(x), y)",
        errors.DataError,
        "a list of 16 arrays",
        "np.stack(x)",
    ),
    Mistake(
        "Images of several sizes in one array",
        "model.fit(np.array([x[0], x[1][:4]], dtype=object), y[:2])",
        errors.DataError,
        "dtype object",
        "have one size",
    ),
    Mistake(
        "Complex numbers",
        "model.fit(np.fft.fft2(x, axes=(1, 2)), y)",
        errors.DataError,
        "complex",
        "np.abs",
    ),
    Mistake(
        "Images with values 0..255 as int64",
        'model.fit(np.full((16, 8, 8, 3), 255, "int64"), y)',
        errors.DataError,
        "(16, 8, 8, 3)",
        "x.astype('uint8')",
    ),
    Mistake(
        "Prediction on uint8 after training on floats",
        'model.fit(x, y)\nmodel.predict(np.zeros((4, 8, 8, 3), "uint8"))',
        errors.DataError,
        "Got uint8 images",
        "floats as in training",
        trains=True,
    ),
    Mistake(
        "Evaluation on floats up to 255 after training on uint8",
        'model.fit(np.full((16, 8, 8, 3), 9, "uint8"), y)\nmodel.evaluate(255 * np.abs(x), y)',
        errors.DataError,
        "values from",
        "floats in [0, 1]",
        trains=True,
    ),
    Mistake(
        "NaN in the images",
        "x[3, 0, 0, 0] = np.nan\nmodel.fit(x, y)",
        errors.DataError,
        "x[3] holds NaN",
        "np.nan_to_num",
    ),
    Mistake(
        "Masked entries in the images",
        "model.fit(np.ma.masked_greater(x, 2), y)",
        errors.DataError,
        "masked entries",
        "x.filled(0)",
    ),
    Mistake(
        "Labels that exceed 32 bits",
        "model.fit(x, y + 2**32)",
        errors.DataError,
        "4294967296",
        "number classes from 0",
    ),
    Mistake(
        "Paths instead of images",
        'model.predict(["photo.jpg"])',
        errors.DataError,
        "<U9",
        "resfit.data.folder(path)",
    ),
    Mistake(
        "NaN in a batch for train_on_batch",
        "x[3, 0, 0, 0] = np.nan\nmodel.train_on_batch(x, y)",
        errors.DataError,
        "x[3] holds NaN",
        "np.nan_to_num",
    ),
    Mistake("Empty arrays", "model.fit(x[:0], y[:0])", errors.DataError, "'x': 0", "at least one"),
    Mistake(
        "Images and labels of different lengths",
        "model.fit(x, y[:10])",
        errors.DataError,
        "{'x': 16, 'y': 10}",
        "the same examples",
    ),
    Mistake("Swapped images and labels", "model.fit(y, x)", errors.RankError, "(16,)", "(batch, height, width, 3)"),
    Mistake("No images", "model.fit(None, y)", errors.DataError, "x is None", "an array, a dataset, or an iterable"),
    Mistake(
        "The path of a folder instead of images",
        'model.fit("photos/train")',
        errors.DataError,
        "'photos/train'",
        "resfit.data.folder(path)",
    ),
    Mistake(
        "predict with a tuple (x, y)",
        "model.predict((x, y))",
        errors.RankError,
        "a tuple of 2 entries",
        "Pass labels as y",
    ),
    Mistake(
        "validation_data as a list",
        "model.fit(x, y, validation_data=[x, y])",
        errors.DataError,
        "a list of 2 arrays",
        "a tuple: (x, y)",
    ),
    Mistake(
        "validation_split as a percentage",
        "model.fit(x, y, validation_split=20)",
        errors.DataError,
        "20",
        "between 0 and 1",
    ),
    Mistake(
        "validation_split with an iterable",
        "model.fit([(x, y)], validation_split=0.2)",
        errors.DataError,
        "validation_split",
        "validation_data",
    ),
    Mistake("A batch size of zero", "model.fit(x, y, batch_size=0)", errors.DataError, "got 0", "a positive integer"),
    Mistake(
        "A float as batch size",
        "model.fit(x, y, batch_size=len(x) / 2)",
        errors.DataError,
        "got 8.0",
        "a positive integer",
    ),
    Mistake(
        "drop_remainder with fewer examples than a batch",
        "model.fit(x, y, batch_size=32, drop_remainder=True)",
        errors.DataError,
        "16 examples and batch_size=32",
        "Leave drop_remainder out",
    ),
    Mistake(
        "One number as the image sizes of a run",
        "model.fit(x, y, image_sizes=128)",
        errors.DataError,
        "got 128",
        "such as {0: 128, 10: 160, 20: 224}",
    ),
    Mistake(
        "An image size that begins after the run",
        "model.fit(x, y, epochs=10, image_sizes={0: 4, 10: 8})",
        errors.DataError,
        "from epoch 10 on, and fit got epochs=10",
        "move the sizes to earlier epochs",
    ),
    Mistake("Zero epochs", "model.fit(x, y, epochs=0)", errors.DataError, "got 0", "a positive integer"),
    Mistake(
        "epochs as the number of additional epochs",
        "model.fit(x, y, initial_epoch=10, epochs=5)",
        errors.DataError,
        "initial_epoch=10 and epochs=5",
        "counted from the beginning",
    ),
    Mistake(
        "Zero validation steps",
        "model.fit(x, y, validation_data=(x, y), validation_steps=len(x) // 32)",
        errors.DataError,
        "got 0",
        "None for all",
    ),
    Mistake(
        "shuffle='batch', as in Keras",
        'model.fit(x, y, shuffle="batch")',
        errors.DataError,
        "'batch'",
        "True or False",
    ),
    Mistake(
        "A generator for several epochs",
        "model.fit(((x, y) for _ in range(2)), epochs=2)",
        errors.DataError,
        "all its batches have been used",
        "a function that returns a fresh iterator",
        trains=True,
    ),
    Mistake(
        "A generator used in a second fit",
        "batches = ((x, y) for _ in range(2))\nmodel.fit(batches)\nmodel.fit(batches)",
        errors.DataError,
        "yielded no batch",
        "Make a new one",
        trains=True,
    ),
    Mistake(
        "A generator that ends before steps_per_epoch",
        "model.fit(((x, y) for _ in range(2)), steps_per_epoch=5)",
        errors.DataError,
        "all its batches have been used",
        "enough batches for all epochs",
        trains=True,
    ),
    Mistake(
        "A generator as validation data",
        "model.fit(x, y, epochs=2, validation_data=((x, y) for _ in range(1)))",
        errors.DataError,
        "all its batches have been used",
        "a function that returns a fresh iterator",
        trains=True,
    ),
    Mistake(
        "A generator without steps_per_epoch and with a schedule",
        'model.compile("sgd", learning_rate="cosine", dispatch="jit")\nmodel.fit(((x, y) for _ in range(2)))',
        errors.DataError,
        "this data does not know",
        "steps_per_epoch",
    ),
    Mistake(
        "A generator function that needs an argument",
        "def batches(folder):\n    yield x, y\n\nmodel.fit(batches)",
        errors.DataError,
        "'folder'",
        "functools.partial(batches, ...)",
    ),
    Mistake(
        "Single examples instead of batches",
        "model.fit(list(zip(x, y)))",
        errors.DataError,
        "yielded a single example",
        "map(np.stack, zip(*examples))",
    ),
    Mistake(
        "Batches as lists",
        "model.fit([[x, y]])",
        errors.DataError,
        "x is a list of 1",
        "a list of tuples, [(x, y), ...]",
    ),
    Mistake(
        "Labels in addition to an iterable of batches",
        "model.fit([(x, y)], y)",
        errors.DataError,
        "x is a list",
        "labels and weights inside the batches",
    ),
    Mistake(
        "A batch with four parts", "model.fit([(x, y, y, y)])", errors.DataError, "4 entries", "(x, y, sample_weight)"
    ),
    Mistake(
        "A stream with cache='device'",
        'model.fit([(x, y)], cache="device")',
        errors.DataError,
        "x is a list",
        "Leave cache out",
    ),
    Mistake(
        "A missing folder",
        'resfit.data.folder("photos/train")',
        errors.DataError,
        "photos/train",
        "one folder of images per class",
    ),
    Mistake(
        "A folder without class folders",
        'import pathlib\npathlib.Path("photos").mkdir()\npathlib.Path("photos/1.jpg").touch()\n'
        'resfit.data.folder("photos")',
        errors.DataError,
        "1 files and no folders",
        "one folder per class",
    ),
    Mistake(
        "A file that is not an image",
        'import pathlib\npathlib.Path("photos/cats").mkdir(parents=True)\n'
        'pathlib.Path("photos/cats/1.png").write_text("<html>404</html>")\n'
        'model.fit(resfit.data.folder("photos", size=8))',
        errors.DataError,
        "photos/cats/1.png",
        "Remove the file",
    ),
    Mistake(
        "Several broken files in a folder",
        'import pathlib\npathlib.Path("photos/cats").mkdir(parents=True)\n'
        'for i in range(3):\n    pathlib.Path(f"photos/cats/{i}.jpg").write_bytes(b"")\n'
        'from PIL import Image\nImage.new("RGB", (8, 8)).save("photos/cats/3.jpg")\n'
        'resfit.data.folder("photos", size=8)',
        errors.DataError,
        "3 of 4 images cannot be read: photos/cats/0.jpg, photos/cats/1.jpg, photos/cats/2.jpg",
        "on_error='skip'",
    ),
    Mistake(
        "A split of a folder as an argument, as in Keras",
        'resfit.data.folder("photos", size=8, validation_split=0.2)',
        errors.ArgumentError,
        "folder got validation_split=0.2",
        "folder(path).split(0.2)",
    ),
    Mistake(
        "The size of images in the words of Keras",
        'resfit.data.folder("photos", image_size=64)',
        errors.ArgumentError,
        "image_size=64",
        "Use size",
    ),
    Mistake(
        "A percentage in place of a fraction",
        'import pathlib\npathlib.Path("photos/cats").mkdir(parents=True)\n'
        'from PIL import Image\nImage.new("RGB", (8, 8)).save("photos/cats/1.png")\n'
        'resfit.data.folder("photos", size=8).split(20)',
        errors.DataError,
        "got 20",
        "such as 0.2",
    ),
    Mistake(
        "The path of a photograph for a model that was trained on arrays",
        'from PIL import Image\nImage.new("RGB", (40, 30)).save("cat.jpg")\n'
        'resfit.Model(resfit.nets.ResNet(spec, rngs=nnx.Rngs(0))).predict_images("cat.jpg")',
        errors.DataError,
        "'cat.jpg'",
        "model.transforms = resfit.transforms.FolderTransforms(size=",
    ),
    Mistake(
        "Paths as the inputs of predict",
        'model.predict(["cat.jpg", "dog.jpg"])',
        errors.DataError,
        "dtype <U7",
        "model.predict_images(paths)",
    ),
    Mistake(
        "A plot of the mistakes in a folder without predictions",
        "resfit.plots.mistakes(x, y)",
        errors.DataError,
        "mistakes got no logits",
        "mistakes(images, labels, logits)",
    ),
    Mistake(
        "An unknown dataset",
        'resfit.data.load("cifar11")',
        errors.DataError,
        "'cifar11'",
        "Did you mean 'cifar10'?",
    ),
    Mistake(
        "A folder without the files of a classic dataset",
        'resfit.data.load("cifar10", path="photos")',
        errors.DataError,
        "photos is not a folder that contains cifar-10-binary.tar.gz, cifar-10-python.tar.gz",
        "Download https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    ),
    Mistake(
        "A TFDS dataset that is not prepared",
        'resfit.data.tfds("digits", "train", data_dir="datasets")',
        errors.DataError,
        "'digits'",
        "prepare",
    ),
    Mistake(
        "A Hugging Face dataset with all splits",
        "import datasets\n"
        'rows = datasets.Dataset.from_dict({"image": x.tolist(), "label": y.tolist()})\n'
        'model.fit(datasets.DatasetDict({"train": rows}))',
        errors.DataError,
        "'train'",
        "dataset['train']",
    ),
    Mistake(
        "A wrong column name of a Hugging Face dataset",
        "import datasets\n"
        'rows = datasets.Dataset.from_dict({"img": x.tolist(), "label": y.tolist()})\n'
        'model.fit(resfit.data.huggingface(rows, image="image"))',
        errors.DataError,
        "'image'",
        "Expected one of its columns: 'img'",
    ),
    Mistake(
        "A crop in percent",
        'resfit.data.folder("photos", size=224, crop=95)',
        errors.DataError,
        "95",
        "above 0 and at most 1",
    ),
    Mistake(
        "Unbatched Grain data",
        "import grain\nmodel.fit(grain.MapDataset.range(16).map(lambda i: (x[i], y[i])))",
        errors.DataError,
        "which is not a batch",
        ".batch(64)",
    ),
]

LABELS = [
    Mistake("No labels", "model.fit(x)", errors.LabelError, "no labels to train on", "Pass y"),
    Mistake(
        "Validation data without labels",
        "model.fit(x, y, validation_data=x)",
        errors.LabelError,
        "no labels to evaluate on",
        "(x, y)",
        trains=True,
    ),
    Mistake("Class numbers that start at 1", "model.fit(x, y + 1)", errors.LabelError, "run from 1 to 3", "y - 1"),
    Mistake(
        "More classes than outputs",
        "model.fit(x, np.arange(16))",
        errors.LabelError,
        "run from 0 to 15",
        "num_classes=16",
    ),
    Mistake(
        "-1 for examples without a label",
        "y[2] = -1\nmodel.fit(x, y)",
        errors.LabelError,
        "run from -1 to 2",
        "Remove rows without a label",
    ),
    Mistake(
        "Class numbers as floats",
        'model.fit(x, y.astype("float32"))',
        errors.LabelError,
        "float32",
        "y.astype('int32')",
    ),
    Mistake(
        "Class names",
        'model.fit(x, np.array(["cat", "dog"] * 8))',
        errors.DataError,
        "<U3",
        "np.unique(y, return_inverse=True)[1]",
    ),
    Mistake(
        "One-hot labels with the wrong number of classes",
        "model.fit(x, np.eye(5)[y])",
        errors.LabelError,
        "(16, 5)",
        "as many columns as the network has outputs (3)",
    ),
    Mistake(
        "Several classes per image with a single-label loss",
        "model.fit(x, np.ones((16, 3)))",
        errors.LabelError,
        "sums to 3",
        "loss='binary_cross_entropy'",
    ),
    Mistake(
        "NaN in the labels",
        "model.fit(x, np.full((16, 3), np.nan))",
        errors.LabelError,
        "NaN or infinity",
        "Expected finite values",
    ),
    Mistake(
        "A dict of labels without a custom loss",
        'model.fit(x, {"kind": y, "colour": y})',
        errors.LabelError,
        "a dict of ['colour', 'kind']",
        "pass a loss for each",
    ),
    Mistake(
        "Labels -1 and 1 for a binary output",
        "network = resfit.nets.ResNet(dataclasses.replace(spec, num_classes=1), rngs=nnx.Rngs(0))\n"
        "binary = resfit.Model(network)\n"
        'binary.compile("sgd", dispatch="jit")\n'
        "binary.fit(x, np.where(y == 0, 1, -1))",
        errors.LabelError,
        "run from -1 to 1",
        "Expected 0 to 1",
    ),
    Mistake(
        "Class numbers with a regression loss",
        'model.compile(loss="mse", dispatch="jit")\nmodel.fit(x, y)',
        errors.LabelError,
        "(16, 3)",
        "loss='cross_entropy' for class numbers",
    ),
    Mistake(
        "class_weight='balanced', as in scikit-learn",
        'model.fit(x, y, class_weight="balanced")',
        errors.DataError,
        "'balanced'",
        "np.bincount(y)",
    ),
    Mistake(
        "class_weight with class names",
        'model.fit(x, y, class_weight={"cat": 2.0})',
        errors.DataError,
        "'cat'",
        "class numbers",
    ),
    Mistake(
        "class_weight with labels that are probabilities",
        "model.fit(x, np.full(16, 0.7), class_weight={1: 5.0})",
        errors.DataError,
        "a label is 0.7",
        "leave class_weight out and pass sample_weight",
    ),
    Mistake(
        "class_weight for a class that is not whole",
        "model.fit(x, y, class_weight={1.5: 5.0})",
        errors.DataError,
        "1.5 is no class number",
        "Expected class numbers",
    ),
    Mistake(
        "class_weight with an unknown class",
        "model.fit(x, y, class_weight={1: 1.0, 3: 5.0})",
        errors.DataError,
        "the class 3",
        "from 0 to 2",
    ),
    Mistake(
        "class_weight for a class number at each position",
        "model = resfit.Model(nnx.Linear(4, 3, rngs=nnx.Rngs(0)))\n"
        'model.compile("sgd", dispatch="jit")\n'
        'model.fit(np.zeros((16, 5, 4), "float32"), np.eye(5, dtype="int32")[y], class_weight={1: 5.0})',
        errors.LabelError,
        "(16, 5)",
        "y[..., None]",
    ),
    Mistake(
        "Both class_weight and sample_weight",
        "model.fit(x, y, class_weight={0: 2.0}, sample_weight=np.ones(16))",
        errors.DataError,
        "both class_weight and sample_weight",
        "Multiply them",
    ),
    Mistake(
        "sample_weight with one weight per class",
        "model.fit(x, y, sample_weight={0: 1.0, 1: 5.0})",
        errors.DataError,
        "dict of [0, 1]",
        "class_weight",
    ),
    Mistake(
        "class_weight with several labels per example",
        'model.compile(loss="binary_cross_entropy", dispatch="jit")\n'
        "model.fit(x, np.array([[1, 1, 0], [0, 0, 0]] * 8), class_weight={1: 5.0})",
        errors.DataError,
        "row 0 of the labels sums to 2",
        "Weigh several labels inside the loss",
    ),
    Mistake(
        "class_weight with several outputs",
        'model.fit(x, {"kind": y, "size": y}, class_weight={0: 2.0})',
        errors.DataError,
        "dict of ['kind', 'size']",
        "pass weights by output",
    ),
    Mistake(
        "sample_weight with several outputs",
        'model.fit(x, {"kind": y, "size": y}, sample_weight={"kind": np.ones(16), "size": np.zeros(16)})',
        errors.DataError,
        "dict of ['kind', 'size']",
        "losses by output",
    ),
    Mistake(
        "sample_weight with two axes",
        "model.fit(x, y, sample_weight=np.ones((16, 1)))",
        errors.DataError,
        "(16, 1)",
        "sample_weight[:, 0]",
    ),
    Mistake(
        "Negative sample weights",
        "model.fit(x, y, sample_weight=np.linspace(-1, 1, 16))",
        errors.DataError,
        "negative",
        "finite weights >= 0",
    ),
    Mistake(
        "Sample weights that are all zero",
        "model.fit(x, y, sample_weight=np.zeros(16))",
        errors.DataError,
        "All 16 sample weights are 0",
        "Leave sample_weight out",
    ),
]

NETWORKS = [
    Mistake(
        "A Linen module", "from flax import linen\nresfit.Model(linen.Dense(3))", errors.ModuleError, "Dense", "ToNNX"
    ),
    Mistake(
        "A class instead of an object",
        "resfit.Model(resfit.nets.ResNet)",
        errors.ModuleError,
        "the class ResNet",
        "ResNet(...)",
    ),
    Mistake(
        "A network name instead of a network",
        'resfit.Model("resnet18")',
        errors.ModuleError,
        "'resnet18'",
        "resfit.create_model",
    ),
    Mistake(
        "An unknown network name",
        'resfit.create_model("ResNet-50", num_classes=3)',
        errors.SpecError,
        "'ResNet-50'",
        "Did you mean 'resnet50'?",
    ),
    Mistake(
        "pretrained=True, as in timm",
        'resfit.create_model("resnet50", num_classes=1000, pretrained=True)',
        errors.SpecError,
        "['pretrained']",
        "resfit.create_model(..., weights=...)",
    ),
    Mistake(
        "The name of a gate instead of its ratio, as in timm",
        'resfit.create_model("resnet50", num_classes=3, squeeze="se")',
        errors.SpecError,
        "squeeze='se'",
        "a ratio between 0 and 1, 'eca' for efficient channel attention, or None",
    ),
    Mistake(
        "Standardized kernels that start at zero",
        'resfit.create_model("resnetv2_50", num_classes=3, depths=(1,), widths=(8,), weight_standardization=True)',
        errors.SpecError,
        "a kernel of zeros",
        "zero_init_last=False",
    ),
    Mistake(
        "A JAX key instead of nnx.Rngs",
        "resfit.nets.ResNet(spec, rngs=jax.random.key(0))",
        errors.SpecError,
        "PRNGKeyArray",
        "nnx.Rngs(0)",
    ),
    Mistake(
        "Zero classes",
        'resfit.create_model("resnet20", num_classes=0)',
        errors.SpecError,
        "num_classes=0",
        "a positive integer",
    ),
    Mistake(
        "A module without __call__",
        "class Net(nnx.Module):\n"
        "    def __init__(self, rngs):\n"
        "        self.dense = nnx.Linear(192, 3, rngs=rngs)\n\n"
        "resfit.Model(Net(nnx.Rngs(0)))",
        errors.ModuleError,
        "Net has no __call__",
        "def __call__(self, x)",
    ),
    Mistake(
        "A module without parameters",
        "class Net(nnx.Module):\n"
        "    def __call__(self, x):\n"
        "        return x.mean(axis=(1, 2))\n\n"
        "other = resfit.Model(Net())\n"
        "other.compile()\n"
        "other.fit(x, y)",
        errors.ModuleError,
        "Net has no floating-point nnx.Param, so fit has nothing to train",
        "__init__",
    ),
    Mistake(
        "A network without pooling and a dense layer at the end",
        "other = resfit.Model(nnx.Conv(3, 3, (3, 3), rngs=nnx.Rngs(0)))\n"
        'other.compile("sgd", dispatch="jit")\n'
        "other.fit(x, y)",
        errors.LabelError,
        "(16, 8, 8, 3)",
        "global pooling and a dense layer",
    ),
    Mistake(
        "Several outputs without a custom loss",
        "class Net(nnx.Module):\n"
        "    def __init__(self, rngs):\n"
        "        self.dense = nnx.Linear(192, 3, rngs=rngs)\n\n"
        "    def __call__(self, x):\n"
        "        return self.dense(x.reshape(len(x), -1)), x\n\n"
        "other = resfit.Model(Net(nnx.Rngs(0)))\n"
        'other.compile("sgd", dispatch="jit")\n'
        "other.fit(x, y)",
        errors.LabelError,
        "a tuple of 2",
        "a loss for each",
    ),
    Mistake(
        "A loss for an output that the module lacks",
        "class Net(nnx.Module):\n"
        "    def __init__(self, rngs):\n"
        "        self.dense = nnx.Linear(192, 3, rngs=rngs)\n\n"
        "    def __call__(self, x):\n"
        '        return {"kind": self.dense(x.reshape(len(x), -1))}\n\n'
        "other = resfit.Model(Net(nnx.Rngs(0)))\n"
        'other.compile("sgd", loss={"kinds": "auto"}, dispatch="jit")\n'
        'other.fit(x, {"kind": y})',
        errors.CompileError,
        "'kinds'",
        "Did you mean 'kind'?",
    ),
    Mistake(
        "An output without labels",
        "class Net(nnx.Module):\n"
        "    def __init__(self, rngs):\n"
        "        self.dense = nnx.Linear(192, 3, rngs=rngs)\n\n"
        "    def __call__(self, x):\n"
        '        return {"kind": self.dense(x.reshape(len(x), -1))}\n\n'
        "other = resfit.Model(Net(nnx.Rngs(0)))\n"
        'other.compile("sgd", loss={"kind": "auto"}, dispatch="jit")\n'
        'other.fit(x, {"kind": None})',
        errors.LabelError,
        "no labels for this output",
        "loss={'kind': None}",
    ),
    Mistake(
        "A layer with the wrong input size",
        "class Net(nnx.Module):\n"
        "    def __init__(self, rngs):\n"
        "        self.dense = nnx.Linear(100, 3, rngs=rngs)\n\n"
        "    def __call__(self, x):\n"
        "        return self.dense(x.reshape(len(x), -1))\n\n"
        "other = resfit.Model(Net(nnx.Rngs(0)))\n"
        'other.compile("sgd", dispatch="jit")\n'
        "other.fit(x, y)",
        TypeError,
        "Net was called with (float32[16, 8, 8, 3])",
        "dispatch='eager'",
        foreign=True,
    ),
    Mistake(
        "A Python if on an array value",
        "class Net(nnx.Module):\n"
        "    def __init__(self, rngs):\n"
        "        self.dense = nnx.Linear(192, 3, rngs=rngs)\n\n"
        "    def __call__(self, x):\n"
        "        return self.dense(x.reshape(len(x), -1) / (255 if x.max() > 1 else 1))\n\n"
        "other = resfit.Model(Net(nnx.Rngs(0)))\n"
        'other.compile("sgd", dispatch="jit")\n'
        "other.fit(x, y)",
        jax_errors.TracerBoolConversionError,
        "Net was called with (float32[16, 8, 8, 3])",
        "use jax.numpy, not NumPy or Python's if",
        foreign=True,
    ),
    Mistake(
        "A Variable created in __call__",
        "class Net(nnx.Module):\n"
        "    def __init__(self, rngs):\n"
        "        self.dense = nnx.Linear(192, 3, rngs=rngs)\n\n"
        "    def __call__(self, x):\n"
        "        self.mean = nnx.BatchStat(x.mean())\n"
        "        return self.dense(x.reshape(len(x), -1))\n\n"
        "other = resfit.Model(Net(nnx.Rngs(0)))\n"
        'other.compile("sgd", dispatch="jit")\n'
        "other.fit(x, y)",
        errors.ModuleError,
        "'mean' (BatchStat)",
        "Create it in __init__",
    ),
    Mistake(
        "A BatchNorm that is always in evaluation mode",
        "class Net(nnx.Module):\n"
        "    def __init__(self, rngs):\n"
        "        self.norm = nnx.BatchNorm(192, rngs=rngs)\n"
        "        self.dense = nnx.Linear(192, 3, rngs=rngs)\n\n"
        "    def __call__(self, x):\n"
        "        return self.dense(self.norm(x.reshape(len(x), -1), use_running_average=True))\n\n"
        "other = resfit.Model(Net(nnx.Rngs(0)))\n"
        'other.compile("sgd", dispatch="jit")\n'
        "other.fit(x, y)",
        WARNING,
        "every BatchNorm statistic unchanged",
        "Pass the mode on",
    ),
    Mistake(
        "A BatchNorm that is always in training mode",
        "class Net(nnx.Module):\n"
        "    def __init__(self, rngs):\n"
        "        self.norm = nnx.BatchNorm(192, rngs=rngs)\n"
        "        self.dense = nnx.Linear(192, 3, rngs=rngs)\n\n"
        "    def __call__(self, x):\n"
        "        return self.dense(self.norm(x.reshape(len(x), -1), use_running_average=False))\n\n"
        "other = resfit.Model(Net(nnx.Rngs(0)))\n"
        "other.predict(x)",
        WARNING,
        "'norm.mean' moves in evaluation too",
        "pass the mode on",
    ),
    Mistake(
        "freeze(True), as in other libraries",
        "model.freeze(True)",
        errors.ModuleError,
        "freeze received True",
        "model.module.parts",
    ),
    Mistake(
        "Published weights by True, as in other libraries",
        'resfit.create_model("resnet18", weights=True)',
        errors.WeightsError,
        "weights=True",
        "'torchvision/IMAGENET1K_V1'",
    ),
    Mistake(
        "Fine-tuning a custom module by fine_tune",
        "model = resfit.Model(nnx.Linear(3, 3, rngs=nnx.Rngs(0)))\nmodel.fine_tune((x, y))",
        errors.ModuleError,
        "a Linear without parts",
        "call freeze, compile and fit",
    ),
    Mistake(
        "replace_head of the model",
        "model.replace_head(5)",
        errors.OverrideError,
        "no attribute 'replace_head'",
        "model.module.replace_head(num_classes)",
    ),
    Mistake(
        "A freeze pattern that matches nothing",
        'model.freeze("stage_1")',
        errors.ModuleError,
        "'stage_1'",
        "Did you mean 'stage1'?",
    ),
    Mistake(
        "All parameters frozen",
        'model.freeze("*")\nmodel.compile()\nmodel.fit(x, y)',
        errors.ModuleError,
        "freeze('*')",
        "fewer patterns",
    ),
    Mistake(
        "A filter that matches no Variable",
        "model.freeze(nnx.LoRAParam)",
        errors.ModuleError,
        "LoRAParam",
        "The types of its Variables are ['BatchStat', 'Param']",
    ),
    Mistake(
        "A list of freeze patterns",
        'model.freeze(["stem", "stage1"])',
        errors.ModuleError,
        "['stem', 'stage1']",
        "freeze(*['stem', 'stage1'])",
    ),
    Mistake(
        "A layer class instead of a path",
        "model.freeze(nnx.BatchNorm)",
        errors.ModuleError,
        "the class BatchNorm",
        "nnx.Not(nnx.LoRAParam)",
    ),
    Mistake(
        "A counter in a plain attribute",
        "class Net(nnx.Module):\n"
        "    def __init__(self, rngs):\n"
        "        self.dense, self.calls = nnx.Linear(192, 3, rngs=rngs), 0\n\n"
        "    def __call__(self, x):\n"
        "        self.calls += 1\n"
        "        return self.dense(x.reshape(len(x), -1))\n\n"
        "resfit.Model(Net(nnx.Rngs(0))).predict(x)",
        errors.ModuleError,
        "'calls': before 0, after 1",
        "nnx.Variable",
    ),
    Mistake(
        "An activation in a plain attribute",
        "class Net(nnx.Module):\n"
        "    def __init__(self, rngs):\n"
        "        self.dense, self.last = nnx.Linear(192, 3, rngs=rngs), None\n\n"
        "    def __call__(self, x):\n"
        "        self.last = x.mean()\n"
        "        return self.dense(x.reshape(len(x), -1))\n\n"
        "resfit.Model(Net(nnx.Rngs(0))).predict(x)",
        errors.ModuleError,
        "'last': before None, after float32[]",
        "self.sow(nnx.Intermediate",
    ),
    Mistake(
        "Weights of another network",
        "model.set_weights(model.get_weights()[:-1])",
        errors.ModuleError,
        "Got 16 arrays",
        "get_weights",
    ),
]

COMPILE = [
    Mistake(
        "SAM inside of gradient accumulation by optax",
        "sgd = resfit.optimizers.sgd(0.1)\nmodel.compile(optax.MultiSteps(resfit.optimizers.sam(sgd), 4))",
        errors.CompileError,
        "optax.MultiSteps around sam",
        "compile(gradient_accumulation_steps=...)",
    ),
    Mistake(
        "Weight decay of an optimizer without a name",
        "model.compile(optax.adam(1e-3), weight_decay=0.1)",
        errors.CompileError,
        "weight_decay and an optimizer of type",
        "leave weight_decay out",
    ),
    Mistake(
        "A learning rate by Python's if",
        'model.compile("sgd", learning_rate=lambda step: 0.1 if step < 100 else 0.01, dispatch="jit")\nmodel.fit(x, y)',
        jax_errors.TracerBoolConversionError,
        "The function of the learning rate was called with (int32[])",
        "use jax.numpy, not NumPy or Python's if",
        foreign=True,
    ),
    Mistake(
        "An augmentation by Python's if",
        'model.compile(augment=lambda key, x, y: (x[:, ::-1] if x.max() > 1 else x, y), dispatch="jit")\n'
        "model.fit(x, y)",
        jax_errors.TracerBoolConversionError,
        "<lambda> was called with (float32[16, 8, 8, 3]",
        "use jax.numpy, not NumPy or Python's if",
        foreign=True,
    ),
    Mistake(
        "A negative weight decay",
        'model.compile("adamw", weight_decay=-0.1)',
        errors.CompileError,
        "-0.1",
        "0 or more",
    ),
    Mistake(
        "fit before compile",
        "resfit.Model(resfit.nets.ResNet(spec, rngs=nnx.Rngs(0))).fit(x, y)",
        errors.NotCompiledError,
        "not compiled",
        "model.compile(...)",
    ),
    Mistake(
        "freeze after compile",
        'model.freeze("stem")\nmodel.fit(x, y)',
        errors.NotCompiledError,
        "model.freeze changed the trained parts",
        "model.compile(...)",
    ),
    Mistake("A misspelled optimizer", 'model.compile("adamm")', errors.CompileError, "'adamm'", "Did you mean 'adam'?"),
    Mistake(
        "An optimizer that only optax has",
        'model.compile("lion")',
        errors.CompileError,
        "'lion'",
        "compile(optimizer=optax.lion, learning_rate=...)",
    ),
    Mistake(
        "An optax function without a learning rate",
        "model.compile(optax.adam)",
        errors.CompileError,
        "the function adam",
        "learning_rate=...",
    ),
    Mistake(
        "A learning rate given twice",
        "model.compile(optax.sgd(0.1), learning_rate=0.1)",
        errors.CompileError,
        "an optimizer that was built with its own rate",
        "Leave learning_rate out",
    ),
    Mistake(
        "An nnx.Optimizer",
        "model.compile(nnx.Optimizer(model.module, optax.sgd(0.1), wrt=nnx.Param))",
        errors.CompileError,
        "Optimizer",
        "Pass the transformation of",
    ),
    Mistake(
        "A misspelled loss",
        'model.compile(loss="sparse_categorical_crossentropi")',
        errors.CompileError,
        "'sparse_categorical_crossentropi'",
        "Did you mean 'sparse_categorical_crossentropy'?",
    ),
    Mistake(
        "A loss class instead of an object",
        "model.compile(loss=resfit.losses.Focal)",
        errors.CompileError,
        "the class Focal",
        "loss=Focal(...)",
    ),
    Mistake(
        "A loss that returns a mean",
        "def loss(logits, labels):\n"
        "    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()\n\n"
        'model.compile(loss=loss, dispatch="jit")\n'
        "model.fit(x, y)",
        errors.LossError,
        "shape ()",
        "Leave out the mean",
    ),
    Mistake(
        "A loss that returns one value per output",
        "def loss(logits, labels):\n"
        "    return (logits - jax.nn.one_hot(labels, 3)) ** 2\n\n"
        'model.compile(loss=loss, dispatch="jit")\n'
        "model.fit(x, y)",
        errors.LossError,
        "(16, 3)",
        "Average over the other axes",
    ),
    Mistake(
        "A loss without a return statement",
        "def loss(logits, labels):\n"
        "    optax.softmax_cross_entropy_with_integer_labels(logits, labels)\n\n"
        'model.compile(loss=loss, dispatch="jit")\n'
        "model.fit(x, y)",
        errors.LossError,
        "returned None",
        "Add the missing return",
    ),
    Mistake(
        "A loss with ambiguous parameter names",
        "def loss(y, x):\n    return optax.softmax_cross_entropy_with_integer_labels(x, y)\n\nmodel.compile(loss=loss)",
        errors.CompileError,
        "loss(y, x)",
        "Rename the parameters",
    ),
    Mistake(
        "A loss that converts its arguments to NumPy",
        "def loss(logits, labels):\n"
        "    return jnp.asarray(np.asarray(logits)[np.arange(16), labels])\n\n"
        'model.compile(loss=loss, dispatch="jit")\n'
        "model.fit(x, y)",
        jax_errors.TracerArrayConversionError,
        "loss was called with (float32[16, 3], int32[16])",
        "dispatch='eager'",
        foreign=True,
    ),
    Mistake(
        "A PyTorch loss",
        'class CrossEntropyLoss:\n    __module__ = "torch.nn.modules.loss"\n\nmodel.compile(loss=CrossEntropyLoss())',
        errors.CompileError,
        "torch.nn.modules.loss.CrossEntropyLoss",
        "loss='cross_entropy'",
    ),
    Mistake(
        "A train_step, as in Keras",
        "class Mine(resfit.Model):\n    def train_step(self, data):\n        return {}",
        errors.OverrideError,
        "Mine defines train_step",
        "override compute_loss",
    ),
    Mistake(
        "A network that is also a model",
        "class Net(resfit.Model, nnx.Module):\n    def __call__(self, x):\n        return x.mean((1, 2))",
        errors.ModuleError,
        "Net derives from resfit.Model and from flax.nnx.module.Module",
        "pass an object of it: resfit.Model(module)",
    ),
    Mistake(
        "A model that makes layers, as in Keras",
        "class Net(resfit.Model):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.linear = nnx.Linear(3, 3, rngs=nnx.Rngs(0))\n\n"
        "Net()",
        errors.ArgumentError,
        "Model got no module",
        "Expected Model(module)",
    ),
    Mistake(
        "A model that passes itself as its network",
        "class Net(resfit.Model):\n    def __init__(self):\n        super().__init__(self)\n\nNet()",
        errors.ModuleError,
        "got Net, which is a resfit.Model",
        "pass an object of it: resfit.Model(module)",
    ),
    Mistake(
        "A model without the call of the constructor of its base class",
        "class Net(resfit.Model):\n"
        "    def __init__(self):\n"
        "        self.linear = nnx.Linear(3, 3, rngs=nnx.Rngs(0))\n\n"
        "Net().compile()",
        errors.OverrideError,
        "'Net' object has no attribute",
        "call super().__init__(module), with the nnx.Module to train",
    ),
    Mistake(
        "An attribute of a model of Keras",
        "for layer in model.layers:\n    print(layer)",
        errors.OverrideError,
        "no attribute 'layers'",
        "nnx.iter_modules",
    ),
    Mistake(
        "A method of a PyTorch module",
        "model.half()",
        errors.OverrideError,
        "no attribute 'half'",
        "compile(precision='bfloat16')",
    ),
    Mistake(
        "Stopping, as in Lightning",
        "model.should_stop = True",
        errors.OverrideError,
        "model.should_stop was set to True",
        "model.stop_training",
    ),
    Mistake(
        "compute_loss set on a model",
        "model.compute_loss = lambda module, x, y, *, key, train: (module(x)[:, 0], module(x))",
        errors.OverrideError,
        "model.compute_loss was set to",
        "a subclass of Model that defines compute_loss",
    ),
    Mistake(
        "Another head, as in PyTorch",
        "model.fc = nnx.Linear(4, 10, rngs=nnx.Rngs(0))",
        errors.OverrideError,
        "model.fc was set to Linear(",
        "model.module.replace_head(num_classes)",
    ),
    Mistake(
        "Another module for a model",
        "model.module = resfit.nets.ResNet(spec, rngs=nnx.Rngs(1))",
        errors.ModuleError,
        "set to a ResNet",
        "resfit.Model(module) for another module",
    ),
    Mistake(
        "fit with epochs and a learning rate, as in fastai",
        "model.fit(3, 1e-3)",
        errors.DataError,
        "x is 3",
        "fit(x, y, epochs=3)",
    ),
    Mistake(
        "Arguments of Keras's TensorBoard by position",
        'callbacks.TensorBoard("logs", 1, True)',
        errors.ArgumentError,
        "TensorBoard got True",
        "by name: write_images",
    ),
    Mistake(
        "An argument of Keras",
        "model.fit(x, y, workers=4, use_multiprocessing=True)",
        errors.ArgumentError,
        "fit got workers=4",
        "sources of resfit.data read ahead in threads",
    ),
    Mistake(
        "model.trainable = False",
        "model.trainable = False",
        errors.OverrideError,
        "model.trainable was set to False",
        "model.freeze('stem', 'stage1')",
    ),
    Mistake(
        "layer.trainable = False",
        "net = resfit.nets.ResNet(spec, rngs=nnx.Rngs(0))\n"
        "net.stem.trainable = False\n"
        "resfit.Model(net).compile('sgd')",
        errors.ModuleError,
        "The part 'stem' has trainable = False",
        "model.freeze('stem')",
    ),
    Mistake(
        "A misspelled metric",
        'model.compile(metrics=["acuracy"])',
        errors.CompileError,
        "'acuracy'",
        "Did you mean 'accuracy'?",
    ),
    Mistake(
        "A metric of clu without its decorator",
        "import clu.metrics\n\n"
        "class First(clu.metrics.Average):\n"
        "    @classmethod\n"
        "    def from_model_output(cls, *, outputs, **_):\n"
        "        return super().from_model_output(outputs[:, 0])\n\n"
        "model.compile(metrics=[First])",
        errors.CompileError,
        "JAX does not know the sums of the metric First",
        "Write @flax.struct.dataclass above the class",
    ),
    Mistake(
        "A metric that returns a mean",
        "def hits(logits, labels):\n"
        "    return (logits.argmax(1) == labels).mean()\n\n"
        'model.compile(metrics=[hits], dispatch="jit")\n'
        "model.fit(x, y)",
        errors.LabelError,
        "'hits' returned shape ()",
        "Remove the mean",
    ),
    Mistake(
        "Top-5 accuracy with three classes",
        'model.compile(metrics=["top_5_accuracy"], dispatch="jit")\nmodel.fit(x, y)',
        errors.LabelError,
        "a network with 3 classes",
        "5 classes or more",
    ),
    Mistake(
        "A misspelled schedule",
        'model.compile(learning_rate="cosin")',
        errors.CompileError,
        "'cosin'",
        "Did you mean 'cosine'?",
    ),
    Mistake(
        "A learning rate as a string",
        'model.compile(learning_rate="0.1")',
        errors.CompileError,
        "'0.1'",
        "learning_rate=0.1",
    ),
    Mistake(
        "A negative learning rate",
        "model.compile(learning_rate=-0.1)",
        errors.CompileError,
        "-0.1",
        "of 0 or more",
    ),
    Mistake(
        "schedule_free with b1=0",
        "import optax.contrib\n\nmodel.compile(optax.contrib.schedule_free_sgd(0.1, b1=0.0))",
        errors.CompileError,
        "b1=0",
        "b1 above 0",
    ),
    Mistake(
        "A NaN learning rate",
        'model.learning_rate = float("nan")',
        errors.CompileError,
        "nan",
        "a finite number",
    ),
    Mistake(
        "A schedule class instead of an object",
        "model.compile(learning_rate=resfit.schedules.Cosine)",
        errors.CompileError,
        "the class Cosine",
        "learning_rate=Cosine(...)",
    ),
    Mistake(
        "A schedule with parameters (epoch, rate), as in Keras",
        "model.compile(learning_rate=lambda epoch, rate: rate / 2)",
        errors.CompileError,
        "'rate'",
        "LearningRateScheduler",
    ),
    Mistake(
        "A warmup that is longer than the run",
        'model.compile(learning_rate=resfit.schedules.WarmupCosine(warmup_epochs=5), dispatch="jit")\n'
        "model.fit(x, y, epochs=2)",
        errors.CompileError,
        "warmup_epochs=5 in a run of 2",
        "a shorter warm-up",
    ),
    Mistake(
        "Setting the learning rate of a schedule",
        'model.compile(learning_rate="cosine", dispatch="jit")\nmodel.learning_rate = 0.1',
        errors.CompileError,
        "follows a schedule",
        "Compile with a number",
    ),
    Mistake(
        "Setting the learning rate of a built optax optimizer",
        'model.compile(optax.sgd(0.1), dispatch="jit")\nmodel.learning_rate = 0.01',
        errors.CompileError,
        "built into this optax object",
        "optax.inject_hyperparams",
    ),
    Mistake(
        "An unknown precision",
        'model.compile(precision="float16")',
        errors.CompileError,
        "'float16'",
        "'bfloat16'",
    ),
    Mistake(
        "A string as preprocessing",
        'model.compile(preprocess="imagenet")',
        errors.CompileError,
        "'imagenet'",
        "resfit.preprocess.Normalize",
    ),
    Mistake(
        "Another preprocessing than in training",
        "model.fit(x, y)\nmodel.compile(preprocess=resfit.preprocess.Normalize((0.5,) * 3, (0.5,) * 3))",
        errors.CompileError,
        "trained with Auto()",
        "replace_preprocess=True",
        trains=True,
    ),
    Mistake(
        "Transforms with another normalization after training",
        "model.fit(x, y)\nmodel.transforms = resfit.transforms.Transforms(resize=9, crop=8)",
        errors.CompileError,
        "trained with Auto()",
        "mean=None, std=None",
        trains=True,
    ),
    Mistake(
        "An unknown augmentation name",
        'model.compile(augment="cifar10")',
        errors.CompileError,
        "'cifar10'",
        "Did you mean 'cifar'?",
    ),
    Mistake(
        "Flips that alternate by example, of batches without numbers",
        "model.compile(augment=resfit.augment.alternating_flip())\nmodel.fit([(x, y)])",
        errors.DataError,
        "a batch that does not tell which examples it has",
        "Use augment.flip()",
    ),
    Mistake(
        "One copy of each example",
        "model.compile(augment=resfit.augment.repeated_augmentation(1))",
        errors.CompileError,
        "k=1",
        "at least 2",
    ),
    Mistake(
        "Consistent predictions with a loss of several labels",
        'model.compile(loss="binary_cross_entropy", augment=resfit.augment.aug_mix(consistency=12))',
        errors.CompileError,
        "augment.aug_mix(consistency=...)",
        "'cross_entropy'",
    ),
    Mistake("A JAX key as seed", "model.compile(seed=jax.random.key(0))", errors.CompileError, "key<fry>", "such as 0"),
    Mistake("ema=True", "model.compile(ema=True)", errors.CompileError, "True", "such as 0.999"),
    Mistake(
        "Averaged weights of a model without an average",
        'model.evaluate(x, y, weights="ema")',
        errors.CompileError,
        "no averaged weights",
        "compile(ema=0.999)",
    ),
    Mistake(
        "An unknown recipe",
        'resfit.recipes.get("rsb_a3")',
        errors.CompileError,
        "'rsb_a3'",
        "Did you mean 'rsb-a3'?",
    ),
    Mistake(
        "A recipe with an unknown field",
        'resfit.recipes.get("rsb-a3").replace(lr=0.001)',
        errors.CompileError,
        "'lr'",
        "'learning_rate'",
    ),
    Mistake(
        "A dry run of too few steps",
        "resfit.dry_run(model, x, y, batch_size=16)",
        errors.DataError,
        "a run of 1 step.",
        "smaller batch_size",
    ),
    Mistake(
        "An unknown kind of output",
        'model.predict(x, outputs="probs")',
        errors.CompileError,
        "'probs'",
        "'probabilities'",
    ),
    Mistake(
        "An unknown test-time augmentation",
        'model.evaluate(x, y, tta="mirror")',
        errors.CompileError,
        "'mirror'",
        "one of ['flip', 'flip+shift']",
    ),
    Mistake(
        "Test-time augmentation of inputs that are no images",
        'resfit.Model(nnx.Linear(3, 2, rngs=nnx.Rngs(0))).predict(np.ones((4, 3), "float32"), tta="flip")',
        errors.RankError,
        "(4, 3)",
        "Leave tta out",
    ),
]

CALLBACKS = [
    Mistake(
        "EarlyStopping on val_loss without validation data",
        "model.fit(x, y, callbacks=[callbacks.EarlyStopping()])",
        WARNING,
        "'val_loss', which is not in the logs",
        "pass validation_data to fit",
        trains=True,
    ),
    Mistake(
        "ModelCheckpoint with an unknown monitor",
        'best = callbacks.ModelCheckpoint("best.safetensors", monitor="val_acc", save_best_only=True)\n'
        "model.fit(x, y, validation_data=(x, y), callbacks=[best])",
        WARNING,
        "'val_acc', which is not in the logs",
        "Did you mean 'val_accuracy'?",
        trains=True,
    ),
    Mistake(
        "ReduceLROnPlateau with an unknown monitor",
        'model.fit(x, y, callbacks=[callbacks.ReduceLROnPlateau("losses", mode="min")])',
        WARNING,
        "'losses', which is not in the logs",
        "Did you mean 'loss'?",
        trains=True,
    ),
    Mistake(
        "A monitored value without a known direction",
        'callbacks.EarlyStopping("val_kappa")',
        errors.CallbackError,
        "'val_kappa'",
        "mode='min' or 'max'",
    ),
    Mistake(
        "ReduceLROnPlateau with a factor above 1",
        "callbacks.ReduceLROnPlateau(factor=10)",
        errors.CallbackError,
        "got 10",
        "0 < factor < 1",
    ),
    Mistake(
        "ReduceLROnPlateau with a schedule",
        'model.compile(learning_rate="cosine", dispatch="jit")\n'
        "model.fit(x, y, validation_data=(x, y), callbacks=[callbacks.ReduceLROnPlateau()])",
        errors.CallbackError,
        "follows a schedule",
        "Compile with a number",
    ),
    Mistake(
        "LearningRateScheduler with a function that returns None",
        "model.fit(x, y, callbacks=[callbacks.LearningRateScheduler(lambda epoch: None)])",
        errors.CallbackError,
        "returned None",
        "a finite number",
    ),
    Mistake(
        "A callback class instead of an object",
        "model.fit(x, y, callbacks=[callbacks.EarlyStopping])",
        errors.CallbackError,
        "the class EarlyStopping",
        "EarlyStopping(...)",
    ),
    Mistake(
        "A function as a callback",
        "model.fit(x, y, callbacks=lambda epoch, logs: None)",
        errors.CallbackError,
        "function",
        "LambdaCallback",
    ),
    Mistake(
        "A hook without a logs parameter",
        "class Mine(callbacks.Callback):\n"
        "    def on_epoch_end(self, epoch):\n"
        "        pass\n\n"
        "model.fit(x, y, callbacks=[Mine()])",
        errors.CallbackError,
        "Mine.on_epoch_end",
        "def on_epoch_end(self, epoch, logs)",
    ),
    Mistake(
        "A hook of another library",
        "class Mine(callbacks.Callback):\n"
        "    def on_train_epoch_end(self, epoch, logs=None):\n"
        "        pass\n\n"
        "model.fit(x, y, callbacks=[Mine()])",
        WARNING,
        "Mine.on_train_epoch_end is not a hook",
        "on_train_batch_end",
        trains=True,
    ),
    Mistake(
        "LambdaCallback with an unknown hook",
        "callbacks.LambdaCallback(on_epoch_ends=print)",
        errors.CallbackError,
        "'on_epoch_ends'",
        "Did you mean 'on_epoch_end'?",
    ),
    Mistake(
        "compile inside a callback",
        "class Switch(callbacks.Callback):\n"
        "    def on_epoch_end(self, epoch, logs=None):\n"
        '        self.model.compile("adam")\n\n'
        "model.fit(x, y, callbacks=[Switch()])",
        errors.CompileError,
        "while fit is running",
        "model.stop_training = True",
        trains=True,
    ),
    Mistake(
        "fit inside a callback",
        "class Again(callbacks.Callback):\n"
        "    def on_epoch_end(self, epoch, logs=None):\n"
        "        self.model.fit(x, y)\n\n"
        "model.fit(x, y, callbacks=[Again()])",
        errors.CallbackError,
        "while fit is running",
        "train another Model",
        trains=True,
    ),
    Mistake(
        "SwapEMAWeights without an average",
        "model.fit(x, y, callbacks=[callbacks.SwapEMAWeights()])",
        errors.CompileError,
        "no averaged weights",
        "compile(ema=0.999)",
    ),
    Mistake(
        "SwapEMAWeights outside fit",
        "model.evaluate(x, y, callbacks=[callbacks.SwapEMAWeights()])",
        WARNING,
        "evaluate outside fit",
        "pass evaluate(..., weights='ema')",
    ),
    Mistake(
        "Checkpoint with every='batch'",
        'callbacks.Checkpoint("runs/a", every="batch")',
        errors.CallbackError,
        "every='batch'",
        "a positive number of steps",
    ),
    Mistake(
        "A file name with an unknown log value",
        'model.fit(x, y, callbacks=[callbacks.ModelCheckpoint("{val_loss:.2f}.safetensors")])',
        errors.CallbackError,
        "uses 'val_loss'",
        "Expected one of ['accuracy', 'epoch', 'loss']",
        trains=True,
    ),
]

FILES = [
    Mistake(
        "An average of two architectures",
        "other = resfit.create_model('resnet20', num_classes=3)\nresfit.weights.average([model, other])",
        errors.WeightsError,
        "'head.dense.kernel' is float32[4, 3], and float32[64, 3] in source 1",
        "Average networks of one architecture",
    ),
    Mistake(
        "ModelCheckpoint to an HDF5 file",
        'callbacks.ModelCheckpoint("best.h5")',
        errors.CallbackError,
        "'best.h5'",
        "'.safetensors'",
    ),
    Mistake(
        "save with another file suffix",
        'model.save("best.keras")',
        errors.SavedModelError,
        "'best.keras'",
        "'best.safetensors'",
    ),
    Mistake(
        "save to a missing folder",
        'model.save("models/best.safetensors")',
        FileNotFoundError,
        "'models'",
        "mkdir(parents=True)",
    ),
    Mistake(
        "save to a folder",
        'import pathlib\npathlib.Path("best.safetensors").mkdir()\nmodel.save("best.safetensors")',
        IsADirectoryError,
        "best.safetensors' is a folder",
        "Pass another path",
    ),
    Mistake(
        "load_exported with a folder",
        'import pathlib\npathlib.Path("exported").mkdir()\nresfit.load_exported("exported")',
        errors.SavedModelError,
        "exported is a folder",
        "the path of the file itself",
    ),
    Mistake(
        "TensorBoard in a file",
        'import pathlib\npathlib.Path("logs").write_text("a log")\ncallbacks.TensorBoard("logs")',
        NotADirectoryError,
        "logs' is a file",
        "Pass another path",
    ),
    Mistake(
        "An argument of ONNX for a program of jax",
        'model.export("net.npz", input_shape=(8, 8, 3), input_dtype="float32", opset=17)',
        errors.ExportError,
        "opset=17 and dynamic_batch=True with the path 'net.npz'",
        "write an ONNX file",
    ),
    Mistake(
        "A missing file",
        'model.save("best.safetensors")\nresfit.load("bset.safetensors")',
        FileNotFoundError,
        "bset.safetensors",
        "Did you mean 'best.safetensors'?",
    ),
    Mistake(
        "A PyTorch file",
        'import pathlib\npathlib.Path("resnet18.pth").write_bytes(b"PK 1234567890")\nresfit.load("resnet18.pth")',
        errors.SavedModelError,
        "resnet18.pth is not a safetensors file",
        "resfit.weights.load(net, path)",
    ),
    Mistake(
        "A truncated file",
        'import pathlib\nmodel.save("best.safetensors")\nfile = pathlib.Path("best.safetensors")\n'
        'file.write_bytes(file.read_bytes()[:-100])\nresfit.load("best.safetensors")',
        errors.SavedModelError,
        "or is damaged",
        "use another copy",
    ),
    Mistake(
        "A safetensors file from another program",
        "from safetensors.numpy import save_file\n"
        'save_file({"conv1.weight": np.zeros((4, 3, 3, 3))}, "other.safetensors")\n'
        'resfit.load("other.safetensors")',
        errors.SavedModelError,
        "was not written by Model.save",
        "resfit.weights.load(net, path)",
    ),
    Mistake(
        "A checkpoint folder instead of a file",
        'model.fit(x, y, callbacks=[callbacks.Checkpoint("run")])\nresfit.load("run")',
        errors.SavedModelError,
        "run is a folder",
        "fit(resume=True",
        trains=True,
    ),
    Mistake(
        "A file of a network with another number of classes",
        'model.save("three.safetensors")\n'
        "five = resfit.nets.ResNet(dataclasses.replace(spec, num_classes=5), rngs=nnx.Rngs(0))\n"
        'resfit.load("three.safetensors", module=five)',
        errors.SavedModelError,
        "head.dense.bias has shape (3,), expected (5,)",
        "Omit module",
    ),
    Mistake(
        "A file of a custom module without the module",
        'resfit.Model(nnx.Linear(3, 3, rngs=nnx.Rngs(0))).save("linear.safetensors")\n'
        'resfit.load("linear.safetensors")',
        errors.SavedModelError,
        "holds a Linear",
        "module=...",
    ),
    Mistake(
        "A name that no repository of the hub can have",
        'resfit.from_hub("my model")',
        errors.HubError,
        "'my model'",
        "'user/name'",
    ),
    Mistake(
        "A misspelled field of a model card",
        'model.card("user/name", dataset="fashion_mnist")',
        errors.ArgumentError,
        "dataset='fashion_mnist'",
        "Did you mean 'datasets'?",
    ),
    Mistake(
        "PyTorch weights with another number of classes",
        "state = resfit.weights.state_dict(model.module)\n"
        'state["fc.bias"] = np.zeros(1000)\n'
        "resfit.weights.load_state_dict(model.module, state)",
        errors.WeightsError,
        "fc.bias has shape (1000,), expected (3,)",
        "num_classes",
    ),
    Mistake(
        "Weights of a quantized network",
        "state = resfit.weights.state_dict(model.module)\n"
        'state["fc.weight"] = (state["fc.weight"] * 127).astype("int8")\n'
        "resfit.weights.load_state_dict(model.module, state)",
        errors.WeightsError,
        "fc.weight has the dtype int8",
        "Convert the weights",
    ),
    Mistake(
        "A model in place of its network",
        "resfit.weights.load_state_dict(model, resfit.weights.state_dict(model.module))",
        errors.WeightsError,
        "Received a Model as the network",
        "Pass model.module",
    ),
    Mistake(
        "Weights of a file with two networks",
        "state = resfit.weights.state_dict(model.module)\n"
        'both = {f"net.{name}": value for name, value in state.items()}\n'
        'both |= {f"ema.{name}": value + 1 for name, value in state.items()}\n'
        "resfit.weights.load_state_dict(model.module, both)",
        errors.WeightsError,
        "contains 2 networks, with the prefixes ['ema.', 'net.']",
        "prefix='net.'",
    ),
    Mistake(
        "Ignored arrays inside a block",
        "state = resfit.weights.state_dict(model.module)\n"
        'state["layer1.0.attention.weight"] = np.zeros((4, 4))\n'
        'resfit.weights.load_state_dict(model.module, state, ignore="layer1.0.attention")',
        errors.WeightsError,
        "inside the stem or the blocks of the network",
        "Create a network that has them",
    ),
]

RESUME = [
    Mistake(
        "resume=True without a Checkpoint",
        'model.fit(x, y, resume=True, callbacks=[callbacks.ModelCheckpoint("best.safetensors")])',
        errors.ResumeError,
        "no Checkpoint callback",
        "callbacks=[resfit.callbacks.Checkpoint(folder)]",
    ),
    Mistake(
        "An unknown value of resume",
        'model.fit(x, y, resume="auto", callbacks=[callbacks.Checkpoint("run")])',
        errors.ResumeError,
        "'auto'",
        "True, False or 'inexact'",
    ),
    Mistake(
        "A new run in a folder of another run",
        'model.fit(x, y, callbacks=[callbacks.Checkpoint("run")])\n'
        'model.fit(x, y, callbacks=[callbacks.Checkpoint("run")])',
        errors.ResumeError,
        "'run' holds checkpoints of a run",
        "resume=True",
        trains=True,
    ),
    Mistake(
        "Resuming with another batch size",
        'model.fit(x, y, batch_size=16, callbacks=[callbacks.Checkpoint("run")])\n'
        'model.fit(x, y, batch_size=8, resume=True, callbacks=[callbacks.Checkpoint("run")])',
        errors.ResumeError,
        "batch_size was 16, is 8",
        "resume='inexact'",
        trains=True,
    ),
    Mistake(
        "Resuming with another network",
        'model.fit(x, y, callbacks=[callbacks.Checkpoint("run")])\n'
        "other = resfit.Model(resfit.nets.ResNet(dataclasses.replace(spec, widths=(6,)), rngs=nnx.Rngs(0)))\n"
        'other.compile("sgd", learning_rate=0.1, dispatch="jit")\n'
        'other.fit(x, y, resume=True, callbacks=[callbacks.Checkpoint("run")])',
        errors.ResumeError,
        "another network or optimizer",
        "pass another folder",
        trains=True,
    ),
    Mistake(
        "Two runs in one folder at the same time",
        "class Other(callbacks.Callback):\n"
        "    def on_epoch_end(self, epoch, logs=None):\n"
        "        other = resfit.Model(resfit.nets.ResNet(spec, rngs=nnx.Rngs(0)))\n"
        '        other.compile("sgd", learning_rate=0.1, dispatch="jit")\n'
        '        other.fit(x, y, resume=True, callbacks=[callbacks.Checkpoint("run")])\n\n'
        'model.fit(x, y, callbacks=[callbacks.Checkpoint("run"), Other()])',
        errors.CheckpointError,
        "Another run writes to 'run'",
        "pass another folder",
        trains=True,
    ),
    Mistake(
        "Two Checkpoint callbacks",
        'model.fit(x, y, callbacks=[callbacks.Checkpoint("a"), callbacks.Checkpoint("b")])',
        errors.ResumeError,
        "2 Checkpoint callbacks",
        "Expected one",
    ),
    Mistake(
        "A file at the path of the checkpoint folder",
        'import pathlib\npathlib.Path("run").touch()\nmodel.fit(x, y, callbacks=[callbacks.Checkpoint("run")])',
        errors.CheckpointError,
        "'run'",
        "a folder that can be made and written to",
    ),
]

DEVICES = [
    Mistake(
        "A misspelled dispatch",
        'model.compile(dispatch="shared")',
        errors.CompileError,
        "'shared'",
        "Did you mean 'sharded'?",
    ),
    Mistake(
        "An unknown batch_norm mode",
        'model.compile(batch_norm="sync")',
        errors.CompileError,
        "'sync'",
        "'global'",
    ),
    Mistake(
        "An unknown value of cache",
        'model.fit(x, y, cache="gpu")',
        errors.DataError,
        "'gpu'",
        "None or 'device'",
    ),
    Mistake(
        "Zero gradient accumulation steps",
        "model.compile(gradient_accumulation_steps=0)",
        errors.CompileError,
        "got 0",
        "a positive integer",
    ),
    Mistake(
        "A process number out of range",
        'resfit.distributed.initialize(coordinator="localhost:1234", processes=2, process=2)',
        errors.DistributedError,
        "got 2",
        "0 to 1",
    ),
]

_MAKE = "make = lambda seed: resfit.nets.ResNet(spec, rngs=nnx.Rngs(seed))\n"
_CLASSIFIER = "from resfit.sklearn import Classifier\n"

SEARCH = [
    Mistake(
        "A fixed number in the space of a search",
        _MAKE + 'resfit.search(make, {"learning_rate": 0.1}, (x, y), validation_data=(x, y))',
        errors.ArgumentError,
        "learning_rate=0.1",
        "Pass a fixed value in compile_arguments.",
    ),
    Mistake(
        "A name in the space that compile does not have",
        _MAKE + 'resfit.search(make, {"lr": [0.1, 0.01]}, (x, y), validation_data=(x, y))',
        errors.ArgumentError,
        "'lr'",
        "learning_rate",
    ),
    Mistake(
        "A search without validation data",
        _MAKE + 'resfit.search(make, {"learning_rate": [0.1, 0.01]}, (x, y))',
        errors.DataError,
        "no validation_data",
        "Pass validation_data=(x, y)",
    ),
    Mistake(
        "Successive halving with a schedule that spans the epochs",
        _MAKE
        + 'resfit.search(make, {"seed": [0, 1]}, (x, y), validation_data=(x, y), epochs=4, halving=2,\n'
        + '              compile_arguments={"learning_rate": "cosine"})',
        errors.ArgumentError,
        "learning_rate='cosine'",
        "Leave halving out.",
    ),
    Mistake(
        "A network instead of a function, in a search",
        'resfit.search(model.module, {"learning_rate": [0.1, 0.01]}, (x, y), validation_data=(x, y))',
        errors.ArgumentError,
        "ResNet",
        "a function seed -> module",
    ),
    Mistake(
        "Rows for a network of images, in scikit-learn",
        _CLASSIFIER + 'Classifier("resnet20").fit(x.reshape(16, -1), y)',
        errors.RankError,
        "(16, 192)",
        "Pass image_shape=(height, width, channels).",
    ),
    Mistake(
        "An image_shape of another number of features",
        _CLASSIFIER + 'Classifier("resnet20", image_shape=(8, 8, 1)).fit(x.reshape(16, -1), y)',
        errors.DataError,
        "(192,)",
        "rows of 64 features",
    ),
    Mistake(
        "A network instead of a function, in scikit-learn",
        _CLASSIFIER + "Classifier(model.module).fit(x, y)",
        errors.ModuleError,
        "an object of ResNet",
        "a function that returns a new module for each fit",
    ),
    Mistake(
        "Labels of one class, in scikit-learn",
        _CLASSIFIER + 'Classifier("resnet20").fit(x, np.zeros(16))',
        errors.LabelError,
        "one class",
        "Pass examples of each class",
    ),
]

_MEMBERS = "ensemble = resfit.Ensemble(lambda seed: resfit.nets.ResNet(spec, rngs=nnx.Rngs(seed)), members=2)\n"

ENSEMBLE = [
    Mistake(
        "A module in place of a function of the seed",
        "resfit.Ensemble(resfit.nets.ResNet(spec, rngs=nnx.Rngs(0)), members=3)",
        errors.ArgumentError,
        "a ResNet as make",
        "a function seed -> module",
    ),
    Mistake(
        "One module for all members",
        "net = resfit.nets.ResNet(spec, rngs=nnx.Rngs(0))\nresfit.Ensemble(lambda seed: net, members=2)",
        errors.ModuleError,
        "make(1)",
        "a new module in each call",
    ),
    Mistake(
        "An ensemble without members",
        "resfit.Ensemble(lambda seed: resfit.nets.ResNet(spec, rngs=nnx.Rngs(seed)), members=0)",
        errors.ArgumentError,
        "got 0",
        "a positive number of members, or a list of seeds",
    ),
    Mistake(
        "Another number of learning rates than of members",
        f"{_MEMBERS}ensemble.compile(learning_rate=[0.1, 0.2, 0.3])",
        errors.ArgumentError,
        "3 values of learning_rate for 2 members",
        "one for each member",
    ),
    Mistake(
        "fit of an ensemble before compile",
        f"{_MEMBERS}ensemble.fit(x, y)",
        errors.NotCompiledError,
        "was not compiled",
        "Call ensemble.compile(...)",
    ),
    Mistake(
        "Folds together with validation data",
        f"{_MEMBERS}ensemble.compile()\nensemble.fit(x, y, folds=2, validation_data=(x, y))",
        errors.DataError,
        "folds=2",
        "each member is validated on its own fold",
    ),
    Mistake(
        "Folds that the members cannot share",
        f"{_MEMBERS}ensemble.compile()\nensemble.fit(x, y, folds=3)",
        errors.DataError,
        "folds=3 for 2 members",
        "a divisor of the number of members",
    ),
    Mistake(
        "One iterator for all members",
        f"{_MEMBERS}ensemble.compile()\nensemble.fit(iter([(x, y)]))",
        errors.DataError,
        "list_iterator",
        "x=resfit.Each([...])",
    ),
    Mistake(
        "One log file for all members",
        f'{_MEMBERS}ensemble.compile()\nensemble.fit(x, y, callbacks=callbacks.CSVLogger("log.csv"))',
        errors.CallbackError,
        "one CSVLogger",
        "callbacks=lambda member: [CSVLogger(...)]",
    ),
    Mistake(
        "One callback for two members",
        f"{_MEMBERS}ensemble.compile()\nstop = callbacks.EarlyStopping()\nensemble.fit(x, y, callbacks=lambda _: stop)",
        errors.CallbackError,
        "The members 0 and 1 of the ensemble got one EarlyStopping",
        "a new object for each member",
    ),
    Mistake(
        "A callback of one model for the whole ensemble",
        f'{_MEMBERS}ensemble.compile()\nensemble.fit(x, y, ensemble_callbacks=callbacks.Checkpoint("run"))',
        errors.CallbackError,
        "ensemble_callbacks holds Checkpoint",
        "Pass it as callbacks=",
    ),
    Mistake(
        "Members with different numbers of classes",
        "wide = lambda seed: resfit.nets.ResNet(dataclasses.replace(spec, num_classes=seed + 2), rngs=nnx.Rngs(seed))\n"
        "resfit.Ensemble(wide, members=2).predict(x)",
        errors.ModuleError,
        "member 1 of shape",
        "one architecture for all seeds",
    ),
    Mistake(
        "Predicted probabilities of an ensemble for regression",
        f'{_MEMBERS}ensemble.compile(loss="mse")\nensemble.predict(x)',
        errors.CompileError,
        "loss='mse'",
        "Pass outputs='logits'",
    ),
    Mistake(
        "fit of an ensemble without a number of epochs",
        f"{_MEMBERS}ensemble.compile()\nensemble.fit(x, y, epochs=None)",
        errors.DataError,
        "got None",
        "a positive integer",
    ),
    Mistake(
        "The mean of embeddings",
        f'{_MEMBERS}ensemble.predict(x, outputs="embedding")',
        errors.CompileError,
        "'embedding'",
        "members=True",
    ),
    Mistake(
        "A folder without members",
        'resfit.Ensemble.load("nothing")',
        errors.SavedModelError,
        "'nothing'",
        "a folder of Ensemble.save",
    ),
]

TOPICS = {
    "Data": DATA,
    "Labels and weights": LABELS,
    "Networks": NETWORKS,
    "Compile": COMPILE,
    "Callbacks": CALLBACKS,
    "Files": FILES,
    "Resuming": RESUME,
    "Devices and processes": DEVICES,
    "Ensembles": ENSEMBLE,
    "Search and scikit-learn": SEARCH,
}
MISTAKES = [mistake for mistakes in TOPICS.values() for mistake in mistakes]
