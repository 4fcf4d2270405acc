"""Several models that differ by their seeds learn at once."""
