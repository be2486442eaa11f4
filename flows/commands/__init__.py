"""Commands of the command line, by subject. Every import that costs time is made by the command that needs it."""
