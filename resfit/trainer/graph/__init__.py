"""The structure of a user's module: its leaves, its plan in both modes, and changes of it."""
