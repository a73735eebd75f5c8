"""Checkpoints of a run: the store on disk, what must be equal to resume, and the manager of both."""
