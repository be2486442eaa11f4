"""The mathematics of learning from preferences, and what its loops share."""
