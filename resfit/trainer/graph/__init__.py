"""The structure of a user's module: which arrays are trained, how modes are set, what changed."""
