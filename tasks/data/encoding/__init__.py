"""Records as text in the chat template, and as token ids."""
