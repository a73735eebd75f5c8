"""What torchvision's operations make of two images, and the parameters."""

import ast
from pathlib import Path
from typing import Any

import numpy as np

_FOLDER = Path(__file__).parents[1] / "golden"
with np.load(_FOLDER / "augment.npz") as _file:
    GOLDEN = dict(_file)
# The constants of the script that made them.
CASES: dict[str, Any] = {
    node.targets[0].id: ast.literal_eval(node.value)  # type: ignore[attr-defined]
    for node in ast.parse((_FOLDER / "make_augment.py").read_text()).body
    if isinstance(node, ast.Assign)
}


def assert_within_a_level(found: Any, name: str) -> None:
    """Check the image of a batch of one."""
    np.testing.assert_allclose(np.asarray(found, int)[0], GOLDEN[name].astype(int), atol=1, err_msg=name)
