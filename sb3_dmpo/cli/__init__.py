"""The command line: rl_zoo3's own training and enjoying, for offline algorithms and datasets."""
