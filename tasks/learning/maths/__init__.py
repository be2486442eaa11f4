"""Losses, advantages and calibration, on torch alone."""
