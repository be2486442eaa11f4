"""Looking at a checkout, and changing nothing: its state, its machine, its rows, what a run would cost."""
