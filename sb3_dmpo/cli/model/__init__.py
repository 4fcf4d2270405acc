"""``inspect`` and ``push``: what is done with a zip after training."""
