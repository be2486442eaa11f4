"""What the training loops share: steps, checkpoints, curves."""
