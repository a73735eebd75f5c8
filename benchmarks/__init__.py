"""Measurements, as ratios of contestants that run side by side. `python -m benchmarks` runs all of them."""
