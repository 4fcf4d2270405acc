"""``describe``, ``convert`` and ``collect``: what is done with a dataset before training."""
