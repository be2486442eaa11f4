"""Our trainers and TRL's on the same model, rows, order, steps and precision, alternating: `make bench`."""
