"""Answering requests that come one by one: a batch that sequences join and leave between two steps."""
