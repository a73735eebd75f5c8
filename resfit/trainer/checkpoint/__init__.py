"""Checkpoints of a run: the files on disk, the comparison of settings, saving and restoring."""
