"""Tests of the mathematics and of what the trainers share."""
