"""The facts that a model learns from its data: the form of inputs and labels."""
