"""The loops of fit, evaluate and predict, and what can happen between two batches."""
