"""Checks before anything runs."""
