"""Draw the pictures of the documentation, with resfit and scikit-learn's handwritten digits only.

    python docs/pictures/make.py gradients  # one of them, into docs/pictures/; without a name: all

gradients: the gradient that reaches the first convolution of a new network, by depth, with and without shortcuts.
degradation: training loss of shallow and deep networks, with and without shortcuts.
tools: the pictures that the code of docs/how-to/tools.md draws.
augment: every augmentation, a few times, of scikit-learn's two photographs.
search: twenty trials of a search, as in docs/how-to/search.md.
tensorboard: the logs of the code of docs/how-to/tensorboard.md, in TensorBoard. Needs `pip install playwright`
    and the program chromium.
notebook: the training and the prediction of notebooks/own_photos.ipynb, as Jupyter shows it. Needs
    `pip install nbconvert playwright` and the program chromium.
"""

import argparse
import contextlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
import scipy.stats
from flax import nnx
from sklearn.datasets import load_digits, load_sample_image
from sklearn.model_selection import train_test_split

import resfit
from resfit.nets import ResNet

mpl.use("Agg")
import matplotlib.pyplot as plt

FOLDER = Path(__file__).parent
WITH, WITHOUT = "tab:blue", "tab:red"


class PlainNet(nnx.Module):
    """A residual network without its shortcuts: the same layers in the same order, and no addition."""

    def __init__(self, net: ResNet) -> None:
        self.net = net

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        x = self.net.stem(x, train=train)
        for stage in self.net.stages:
            for block in stage.blocks:
                x = nnx.relu(block.branch(x, train=train))
        return self.net.head(x)


def build(depth: int, *, shortcuts: bool, width: int = 16, seed: int = 0) -> nnx.Module:
    """Build He's CIFAR network of 6n + 2 layers, for digits, or the plain network of the same layers.

    The scales of all norms start at one: with the default, the last scale of each block at zero, a plain network would
    output zeros. Option-A shortcuts have no parameters, so both networks have the same number.
    """
    blocks = (depth - 2) // 6
    net = resfit.create_model(
        "resnet20",
        depths=(blocks,) * 3,
        widths=(width, 2 * width, 4 * width),
        shortcut="A",
        zero_init_last=False,
        num_classes=10,
        in_channels=1,
        rngs=seed,
    )
    return net if shortcuts else PlainNet(net)


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Return training images (1437, 8, 8, 1), float32 in [0, 1], and their labels (1437,)."""
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype("float32") / 16
    x_train, _, y_train, _ = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)
    return x_train, y_train


def first_gradient(net: nnx.Module, x: jax.Array, y: jax.Array) -> float:
    """Return the norm of the gradient with respect to the kernel of the first convolution, in training mode."""
    graph, params, rest = nnx.split(net, nnx.Param, ...)
    rest = nnx.as_pure(rest)

    @jax.jit
    def gradient(params: nnx.State) -> nnx.State:
        def loss(params: nnx.State) -> jax.Array:
            logits = nnx.merge(graph, params, rest)(x, train=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        return jax.grad(loss)(params)

    gradients = gradient(params)
    stem = gradients["net"]["stem"] if "net" in gradients else gradients["stem"]
    return float(jnp.linalg.norm(stem["conv"]["kernel"][...]))


def gradients(folder: Path) -> None:
    depths, seeds = (8, 14, 20, 32, 44, 56, 110), (0, 1, 2)
    x_train, y_train = digits()
    x, y = jnp.asarray(x_train[:128]), jnp.asarray(y_train[:128])
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for shortcuts, label, color in ((True, "with shortcuts", WITH), (False, "without", WITHOUT)):
        norms = np.array([[first_gradient(build(d, shortcuts=shortcuts, seed=s), x, y) for s in seeds] for d in depths])
        for depth, row in zip(depths, norms, strict=True):
            print(f"{label:>15}, {depth:3d} layers: {row.mean():.3g} ({row.min():.3g} to {row.max():.3g})", flush=True)
        axes.plot(depths, norms.mean(axis=1), "o-", color=color, label=label)
        axes.fill_between(depths, norms.min(axis=1), norms.max(axis=1), color=color, alpha=0.2)
    axes.set(yscale="log", xlabel="layers", ylabel="gradient norm at the first convolution")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(folder / "gradients.png", dpi=120)


def degradation(folder: Path) -> None:
    depths, epochs, seeds = (8, 44), 12, (0, 1, 2)
    x_train, y_train = digits()
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), sharey=True, layout="constrained")
    for panel, shortcuts in zip(axes, (False, True), strict=True):
        for depth, color in zip(depths, ("tab:orange", "tab:green"), strict=True):
            losses = []
            for seed in seeds:
                model = resfit.Model(build(depth, shortcuts=shortcuts, width=8, seed=seed))
                model.compile(optimizer="sgd", learning_rate=0.05, seed=seed)
                history = model.fit(x_train, y_train, batch_size=64, epochs=epochs, verbose=0)
                losses.append(history.history["loss"])
            curve = np.array(losses)
            print(f"shortcuts={shortcuts}, {depth} layers: last loss {curve[:, -1].round(4)}", flush=True)
            panel.plot(range(1, epochs + 1), curve.mean(axis=0), color=color, label=f"{depth} layers")
            panel.fill_between(
                range(1, epochs + 1), curve.min(axis=0), curve.max(axis=0), color=color, alpha=0.2, linewidth=0
            )
        panel.set(title="with shortcuts" if shortcuts else "plain: no shortcuts", xlabel="epoch", yscale="log")
        panel.grid(alpha=0.3)
        panel.legend()
    axes[0].set_ylabel("training loss")
    figure.savefig(folder / "degradation.png", dpi=120)


def run_page(page: str) -> None:
    """Run the Python blocks of a how-to guide in the working folder."""
    text = (FOLDER.parent / "how-to" / page).read_text()
    namespace: dict[str, object] = {"__name__": "page"}
    for code in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        exec(compile(code, page, "exec"), namespace)


def tools(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as here, contextlib.chdir(here):
        run_page("tools.md")
        for picture in Path().glob("*.png"):
            shutil.copy(picture, folder)


def search(folder: Path) -> None:
    """Draw the search of docs/how-to/search.md, with more trials and epochs."""
    (x, y), test = resfit.data.load("digits")

    def make(seed: int) -> ResNet:
        return resfit.create_model("resnet20", num_classes=10, in_channels=1, depths=(1, 1), widths=(8, 16), rngs=seed)

    space = {"learning_rate": scipy.stats.loguniform(1e-4, 0.3), "weight_decay": scipy.stats.loguniform(1e-3, 1)}
    found = resfit.search(
        make, space, (x[:1000], y[:1000]), trials=20, epochs=4, validation_data=test,
        compile_arguments={"optimizer": "adamw"},
    )  # fmt: skip
    print(found)
    found.plot().savefig(folder / "trials.png")


def tensorboard(folder: Path) -> None:
    from playwright.sync_api import sync_playwright

    shown = {
        "tensorboard_scalars": "epoch_(loss|accuracy|learning_rate|images_per_second)|batch_loss|confusion_matrix",
        "tensorboard_histograms": "(stem/conv|head/dense)/kernel/.*|stem/norm/mean/histogram",
    }
    with tempfile.TemporaryDirectory() as here, contextlib.chdir(here), contextlib.ExitStack() as stack:
        run_page("tensorboard.md")
        url = "http://localhost:6017/"
        server = subprocess.Popen([Path(sys.executable).with_name("tensorboard"), "--logdir=runs", "--port=6017"])
        stack.callback(server.wait)
        stack.callback(server.terminate)
        wait_for(url)
        chromium = stack.enter_context(sync_playwright()).chromium
        browser = chromium.launch(executable_path=shutil.which("chromium"))
        for name, tags in shown.items():
            page = browser.new_page(viewport={"width": 1440, "height": 840})
            query = urllib.parse.urlencode({"darkMode": "false", "smoothing": 0, "tagFilter": f"^({tags})$"})
            page.goto(f"{url}?{query}#timeseries")
            page.get_by_text("Enable step selection and data table").click()
            page.get_by_role("button", name="Settings").first.click()  # closes them
            page.wait_for_timeout(5000)  # cards are drawn one after the other
            page.screenshot(path=folder / f"{name}.png")
        browser.close()


def wait_for(url: str, seconds: float = 60) -> None:
    """Return when a server answers."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url).close()
        except urllib.error.URLError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            return


def notebook(folder: Path) -> None:
    from nbconvert import HTMLExporter
    from playwright.sync_api import sync_playwright

    page_source, _ = HTMLExporter().from_filename(str(FOLDER.parents[1] / "notebooks" / "own_photos.ipynb"))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 860, "height": 800})
        page.set_content(page_source)
        page.wait_for_timeout(1000)
        top, bottom = (
            page.evaluate(
                "text => [...document.querySelectorAll('h2')].find(h => h.innerText.startsWith(text)).offsetTop", text
            )
            for text in ("Train", "Look for mistakes")
        )
        page.screenshot(
            path=folder / "notebook.png",
            full_page=True,
            clip={"x": 0, "y": top - 20, "width": 860, "height": bottom - top},
        )
        browser.close()


def augment(folder: Path) -> None:
    size, draws = 160, 4
    photographs = [load_sample_image(name) for name in ("flower.jpg", "china.jpg")]
    # The middle square of each photograph: the flower, and the image that is mixed with it.
    whole = resfit.augment.random_resized_crop(size, scale=(0.9, 1), ratio=(1, 1))
    flower, china = (whole(jax.random.key(0), photograph[None], None)[0] for photograph in photographs)
    batch = jnp.concatenate([jnp.repeat(flower, draws, axis=0), china])[jnp.array([4, 0, 1, 2, 3])]
    shown = {
        "flip()": resfit.augment.flip(),
        "pad_crop(24)": resfit.augment.pad_crop(24),
        'pad_crop(24, mode="reflect")': resfit.augment.pad_crop(24, mode="reflect"),
        "random_resized_crop(160)": resfit.augment.random_resized_crop(size),
        "color_jitter(0.4, 0.4, 0.4)": resfit.augment.color_jitter(0.4, 0.4, 0.4),
        "color_jitter(0.4, 0.4, 0.4, hue=0.1)": resfit.augment.color_jitter(0.4, 0.4, 0.4, hue=0.1),
        "rotate(30)": resfit.augment.rotate(30),
        "affine(0, (0.2, 0.2), (0.7, 1.3), (20, 20))": resfit.augment.affine(0, (0.2, 0.2), (0.7, 1.3), (20, 20)),
        "rand_augment(n=2, m=15)": resfit.augment.rand_augment(n=2, m=15),
        "trivial_augment()": resfit.augment.trivial_augment(),
        'auto_augment("imagenet")': resfit.augment.auto_augment("imagenet"),
        "aug_mix(severity=6)": resfit.augment.aug_mix(severity=6),
        "gray(0.5)": resfit.augment.gray(0.5),
        "random_erasing(1.0)": resfit.augment.random_erasing(1.0),
        'random_erasing(1.0, fill="noise")': resfit.augment.random_erasing(1.0, fill="noise"),
        "mixup(1.0)": resfit.augment.mixup(1.0, num_classes=2),
        "cutmix(1.0)": resfit.augment.cutmix(1.0, num_classes=2),
    }
    figure = plt.figure(figsize=(9.6, 13.7), layout="constrained")
    labels = jnp.array([1, 0, 0, 0, 0])
    for panel, (code, function) in zip(figure.subfigures(9, 2).flat, shown.items(), strict=False):
        panel.suptitle(code, family="monospace", fontsize=9)
        apply = jax.jit(function)
        if code.startswith(("mixup", "cutmix")):
            # One share per batch, so each picture needs a batch: the flower, after the other photograph.
            results = [apply(jax.random.key(seed), batch, labels) for seed in range(draws)]
            images, titles = [x[1] for x, _ in results], [f"{1 - y[1, 1]:.0%} flower" for _, y in results]
        else:
            images, titles = apply(jax.random.key(4), batch[1:], None)[0], [""] * draws
        for axes, image, title in zip(panel.subplots(1, draws), images, titles, strict=True):
            axes.imshow(image)
            axes.set_title(title, fontsize=8)
            axes.axis("off")
    figure.savefig(folder / "augment.png", dpi=80)


PICTURES: dict[str, Callable[[Path], None]] = {
    "gradients": gradients,
    "degradation": degradation,
    "tools": tools,
    "augment": augment,
    "search": search,
    "tensorboard": tensorboard,
    "notebook": notebook,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", nargs="?", choices=PICTURES, help="which one (default: all)")
    only = parser.parse_args().picture
    for name in [only] if only else PICTURES:
        began = time.perf_counter()
        PICTURES[name](FOLDER)
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
