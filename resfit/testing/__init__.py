"""For tests of what others build on resfit."""

from resfit.testing.callback_kit import Report, check_callback

__all__ = ["Report", "check_callback"]
