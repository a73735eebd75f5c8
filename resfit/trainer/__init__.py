"""The trainer: pure steps, where they run, and the loop that fires hooks."""
