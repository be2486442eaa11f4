"""Comparison by a language model."""
