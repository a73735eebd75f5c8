"""Shards that are read in order, several at a time."""
