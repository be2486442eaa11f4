"""Raw rows of many shapes, converted to the canonical records."""
