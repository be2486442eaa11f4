"""Answers of a trained policy, and how likely they are: what an evaluation asks of models."""
