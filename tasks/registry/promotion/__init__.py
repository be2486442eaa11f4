"""Registered versions, decisions, and who is champion."""
