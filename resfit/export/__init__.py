"""Model files, and exported programs that run without the code of the model."""
