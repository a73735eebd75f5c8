"""The classic small datasets: downloaded, checked, and loaded as arrays."""
