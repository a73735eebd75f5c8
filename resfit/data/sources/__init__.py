"""Adapters from input formats to examples or batches, one per file."""
