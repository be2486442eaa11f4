"""What was gained, whether it is real, and whether it may be promoted."""
