"""Training a reward model, and measuring it on held-out pairs."""
