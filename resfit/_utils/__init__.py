"""Helpers for all subpackages. Of resfit they import only `errors`."""
