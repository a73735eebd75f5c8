"""The parts of every figure: the package that draws, the size, and the style."""

from typing import TYPE_CHECKING, Any

from resfit._utils.optional_import import load_package

if TYPE_CHECKING:
    import matplotlib.figure

_DPI = 120


def new_figure(width: float, height: float) -> "matplotlib.figure.Figure":
    """Return an empty figure of this size in inches."""
    # Not pyplot: a library must not touch the user's backend or their list of open figures.
    matplotlib_module(".figure")
    from resfit.plots.shown_figure import ShownFigure

    return ShownFigure(figsize=(width, height), layout="constrained", dpi=_DPI)


def matplotlib_module(module: str = "") -> Any:
    """Return matplotlib or one of its modules.

    Raises:
      MissingPackageError: without matplotlib.
    """
    return load_package(f"matplotlib{module}", "Drawing", "pip install 'resfit[plot]'")


def finish(axes: Any, title: str, *, legend: bool = False) -> None:
    """Set the title and the common style of a panel."""
    axes.set_title(title, loc="left", fontweight="bold")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        axes.legend(frameon=False)
