"""Files, folders and hub data sets, read as raw rows."""
