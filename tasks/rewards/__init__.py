"""Rewards: what each is given, and how a function in a user's file is loaded and called."""
