"""Where a model comes from, and what it was made of."""
