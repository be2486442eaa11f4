"""Tests of the judging: figures, comparisons, checks and the report."""
