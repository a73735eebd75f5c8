"""The files that classic data sets are published in: fetched once, checked, read without unpacking."""
