"""A dataset becomes transitions."""
