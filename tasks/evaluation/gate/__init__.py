"""The gate: checks, plots and report."""
