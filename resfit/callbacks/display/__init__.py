"""The parts of the progress display: values as text, time left, and one screen each for terminals, notebooks, logs."""
