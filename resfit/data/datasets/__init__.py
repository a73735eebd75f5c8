"""The classic small datasets: download, check, and load them as arrays."""
