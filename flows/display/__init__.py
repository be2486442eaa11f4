"""What the commands show to people; with --json they print the same data instead."""
