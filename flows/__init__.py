"""Prefect and the command line: who runs when. Nothing here computes."""
