"""A copy of what no run can make again: the tracking database, the record and the settings."""
