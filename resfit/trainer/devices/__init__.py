"""Devices and processes: where arrays live, and how a step runs on several of them."""
