"""Write `docs/errors.md`: `make errors`."""

import contextlib
import io
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from tests.errors.page import PAGE, page

with contextlib.redirect_stdout(io.StringIO()):  # the progress output of the training
    text = page()
PAGE.write_text(text)
