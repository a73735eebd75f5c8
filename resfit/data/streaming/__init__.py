"""Sequential reading of shards, several at a time."""
