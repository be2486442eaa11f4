"""Direct preference optimisation: its losses."""
