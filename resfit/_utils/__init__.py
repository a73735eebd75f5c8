"""Helpers that any subpackage can import: they import nothing of resfit but `errors`."""
