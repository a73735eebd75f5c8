"""The state of training: by name, on the devices, and in the user's module."""
