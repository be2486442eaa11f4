"""Feedback gathered with a model at hand: from a reward or a judge, from people, and in rounds of training."""
