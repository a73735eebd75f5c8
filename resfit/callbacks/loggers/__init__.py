"""Callbacks that write logs to files and services."""
