"""A figure that a notebook shows. This module needs matplotlib; import it after `matplotlib_module`."""

import io

from matplotlib.figure import Figure


class ShownFigure(Figure):
    """A matplotlib Figure that is an image in a notebook, also if nothing has imported pyplot."""

    def _repr_png_(self) -> bytes:
        png = io.BytesIO()
        self.savefig(png, format="png")
        return png.getvalue()
