"""Blind comparison by people."""
