"""What one process does to another: start, lock out, interrupt."""
