"""Tools that examine a model: doctor, Grad-CAM, learning-rate search, recalibration, summary."""
