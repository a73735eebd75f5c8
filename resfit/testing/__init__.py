"""For tests of what others build on resfit."""

from resfit.testing.block_kit import check_block, check_norm, check_stem
from resfit.testing.callback_kit import Report, check_callback
from resfit.testing.findings import PartReport

__all__ = ["PartReport", "Report", "check_block", "check_callback", "check_norm", "check_stem"]
