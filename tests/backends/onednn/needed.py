"""A marker for tests that need oneDNN."""

import os

import pytest

from resfit.backends import onednn


def needs_onednn() -> pytest.MarkDecorator:
    """Skip a test if oneDNN is not available, or fail if RESFIT_REQUIRE (names between commas) has "onednn"."""
    reason = onednn.why_not()
    if reason is not None and "onednn" in os.environ.get("RESFIT_REQUIRE", "").split(","):
        raise RuntimeError(f"RESFIT_REQUIRE has onednn, and it cannot be used: {reason}")
    return pytest.mark.skipif(reason is not None, reason=f"oneDNN cannot be used here: {reason}")
