"""Test kits for custom callbacks, blocks, stems and norms."""

from resfit.testing.block_kit import check_block, check_norm, check_stem
from resfit.testing.callback_kit import CallbackReport, check_callback
from resfit.testing.findings import PartReport

Report = CallbackReport  # the earlier name

__all__ = ["CallbackReport", "PartReport", "Report", "check_block", "check_callback", "check_norm", "check_stem"]
