"""The published files of the classic datasets: their addresses and formats."""
