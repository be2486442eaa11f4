"""What DVC records and holds of each stage."""
