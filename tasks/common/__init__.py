"""Helpers that know nothing of models or data: files, errors, messages, progress."""
