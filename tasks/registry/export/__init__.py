"""Models as folders that others load, with their cards."""
