"""How much memory a stage takes, known before it loads anything."""
