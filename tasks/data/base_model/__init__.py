"""The files of a base model: checked, and laid out for every later stage."""
