"""trueline serve: an OpenAI-compatible server that follows the champion."""
