"""Direct preference optimization: its losses and the cache of reference log-probabilities."""
