"""A dataset becomes transitions. NumPy only: what trains on them lies above."""

from sb3_dmpo.data.loading import (
    dataset_identifier,
    dataset_spaces,
    from_arrays,
    load_transitions,
    names_dataset,
    open_dataset,
    recover_environment,
)
from sb3_dmpo.data.transitions import DatasetError, DatasetSource, Transitions

__all__ = [
    "DatasetError",
    "DatasetSource",
    "Transitions",
    "dataset_identifier",
    "dataset_spaces",
    "from_arrays",
    "load_transitions",
    "names_dataset",
    "open_dataset",
    "recover_environment",
]
