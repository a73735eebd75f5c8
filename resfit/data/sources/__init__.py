"""Adapters, one a file, from an input format to examples or batches."""
