"""Models: loading, forward passes, and their outputs."""
