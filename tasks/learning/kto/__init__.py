"""Kahneman-Tversky optimisation: its losses, and the answers to other prompts that it measures its KL on."""
