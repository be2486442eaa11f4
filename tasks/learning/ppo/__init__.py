"""Proximal policy optimization: scoring rollouts, advantages, policy-gradient losses, and the trainer."""
