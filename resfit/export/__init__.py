"""Saved models, and exported programs that run without resfit."""
