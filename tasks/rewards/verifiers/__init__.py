"""Verifiers: rewards that check an answer by a rule. Each file stands alone, and is copied as a user's file is."""
