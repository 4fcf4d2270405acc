"""Files: what is written to and read from disk."""
