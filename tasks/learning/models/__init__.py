"""PPOModels: loading, forward passes, and their outputs."""
