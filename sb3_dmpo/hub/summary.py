"""What a model's zip says about itself, read as plain data: nothing in it is unpickled, no network is built."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gymnasium import spaces

import sb3_dmpo
from sb3_dmpo.common.arguments import constructor_arguments
from sb3_dmpo.common.model_zip import NOT_HYPERPARAMETERS, attribute_names, find_algorithm, read_file
from sb3_dmpo.common.stored_weights import check_declared
from sb3_dmpo.files.plain_text import named_faults, plain
from sb3_dmpo.files.safe_zip import read_model
from sb3_dmpo.files.save_util import path_to_read
from sb3_dmpo.files.settings import decode

#: A file may hold megabytes of text; nobody wants them on the screen.
_MAX_TEXT = 300


def plain_text(value: Any) -> str:
    """
    A value of the file in one line that a terminal shows as it is: no control characters, not too long.

    :param value: anything
    """
    text = plain(" ".join(str(value).split()))
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}..."


@dataclass(frozen=True)
class ModelSummary:
    """
    What :func:`read_summary` found.

    :param path: the file
    :param algorithm: name in ``sb3_dmpo.ALGOS``; None: of no algorithm of this package
    :param attributes: the attributes as they are stored, JSON only
    :param system: on what the file was made, line by line
    :param weight_bytes: size of the policy's tensors
    """

    path: Path
    algorithm: str | None
    attributes: Mapping[str, Any]
    system: tuple[str, ...]
    weight_bytes: int

    @property
    def class_name(self) -> str | None:
        """Name of the algorithm's class, None if it is not of this package."""
        return None if self.algorithm is None else sb3_dmpo.ALGOS[self.algorithm].__name__

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """The last evaluation in training, as :meth:`EvaluationResult.summary` has it."""
        found = self.attributes.get("last_evaluation")
        return found if isinstance(found, dict) else None

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Constructor arguments that are plain data."""
        if self.algorithm is None:
            return {}
        names = set(constructor_arguments(sb3_dmpo.ALGOS[self.algorithm])) - NOT_HYPERPARAMETERS
        return {name: value for name, value in self.attributes.items() if name in names and not _is_object(value)}


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and not {":serialized:", "$type"}.isdisjoint(value)


def read_summary(path: str | os.PathLike[str]) -> ModelSummary:
    """
    Read what a zip says about itself.

    :param path: a zip of SB3's format
    :raises FileNotFoundError: there is no such file
    :raises DamagedFileError: it is no zip, not complete or its attributes are no JSON
    :raises UnsafeFileError: it would grow far beyond its size, or holds what no model holds
    """
    path = path_to_read(path, ".zip")
    with named_faults(path):
        stored = read_model(read_file(path))
        algorithm = find_algorithm(stored, sb3_dmpo.ALGOS)
        if algorithm is not None:
            # As when it is loaded: nobody is to be told that a file is in order that is refused then.
            check_declared(sb3_dmpo.ALGOS[algorithm], stored)
            stored.check_names(attribute_names(sb3_dmpo.ALGOS[algorithm]))
    lines = tuple(plain_text(line.lstrip("- ")) for line in stored.system.splitlines() if line.strip())
    weights = stored.tensors["policy"]
    weight_bytes = sum(tensor.n_bytes for tensor in weights.values()) if isinstance(weights, dict) else 0
    return ModelSummary(path, algorithm, stored.attributes, lines, weight_bytes)


def _space(space: Any) -> str:
    if not isinstance(space, dict):
        return "unknown"
    if "$type" in space:
        try:
            space = decode(space, {})
        except Exception:  # what a damaged file leads to has no end
            return "unknown"
        if not isinstance(space, spaces.Box):
            return plain_text(space)
        space = {"_shape": list(space.shape), "dtype": space.dtype, "low": space.low, "high": space.high}
    if space.get("_shape") is not None:
        shape = "x".join(map(str, space["_shape"])) if isinstance(space["_shape"], list) else "unknown"
        return plain_text(f"{shape} numbers ({space.get('dtype')}) from {space.get('low')} to {space.get('high')}")
    return plain_text(space.get("spaces", space.get(":type:", "unknown")))


def evaluation_text(evaluation: Mapping[str, Any]) -> str:
    """
    An evaluation in words.

    :param evaluation: as :meth:`EvaluationResult.summary` has it
    """
    parts = []
    if evaluation.get("normalized_score") is not None:
        parts.append(f"normalised {float(evaluation['normalized_score']):.1f} (reference: {evaluation.get('reference')})")
    parts.append(f"return {float(evaluation['mean_return']):.2f} +/- {float(evaluation['std_return']):.2f}")
    if evaluation.get("success_rate") is not None:
        parts.append(f"success rate {100 * float(evaluation['success_rate']):.0f}%")
    parts.append(f"over {evaluation['n_episodes']} episodes after {evaluation['updates']} updates")
    return plain_text(", ".join(parts))


def dynamics_text(found: Any) -> str | None:
    """
    A fitted ensemble of dynamics in words; None where there is none.

    :param found: as :meth:`sb3_dmpo.maple.dynamics.DynamicsEnsemble.summary` has it
    """
    if not isinstance(found, dict):
        return None
    try:
        errors = [float(error) for error in found["holdout_mse_by_output"]]
        variances = [float(variance) for variance in found["holdout_variance_by_output"]]
        unexplained = [error / variance for error, variance in zip(errors, variances, strict=True) if variance > 0]
        parts = [f"{int(found['n_models'])} nets, elites {', '.join(str(int(elite)) for elite in found['elites'])}"]
        parts.append(f"holdout error {float(found['holdout_mse']):.4g} (reward {errors[0]:.4g})")
        if unexplained:
            parts.append(f"{100 * max(unexplained):.0f}% of the variance unexplained in the worst output")
        return plain_text("; ".join(parts))
    except (KeyError, TypeError, ValueError, IndexError):
        return "cannot be read"


def _score(evaluation: Mapping[str, Any] | None) -> str:
    if evaluation is None:
        return "none: it was not evaluated in training"
    try:
        return evaluation_text(evaluation)
    except (KeyError, TypeError, ValueError):
        return "cannot be read"


def summary_lines(summary: ModelSummary) -> list[tuple[str, str]]:
    """
    A summary as names and texts.

    :param summary: the summary
    """
    attributes = summary.attributes
    class_name = summary.class_name
    algorithm = f"{class_name} (--algo {summary.algorithm})" if class_name else "none of this package"
    settings = [f"{name}={plain_text(value)}" for name, value in sorted(summary.hyperparameters.items())]
    fingerprint = attributes.get("dataset_fingerprint")
    dynamics = dynamics_text(attributes.get("_dynamics_summary"))
    dataset = plain_text(attributes.get("dataset_id") or "data without a name")
    return [
        ("file", plain_text(f"{summary.path}, complete, all checksums right")),
        ("algorithm", algorithm),
        ("dataset", f"{dataset}, hash {plain_text(fingerprint)}" if fingerprint else dataset),
        ("updates", plain_text(attributes.get("_n_updates", "unknown"))),
        ("score", _score(summary.evaluation)),
        ("observations", _space(attributes.get("observation_space"))),
        ("actions", _space(attributes.get("action_space"))),
        ("seed", plain_text(attributes.get("seed"))),
        ("weights", f"{summary.weight_bytes / 1e6:.2f} MB"),
        *([] if dynamics is None else [("dynamics", dynamics)]),
        ("settings", ", ".join(settings) or "unknown"),
        ("made with", ", ".join(summary.system) or "unknown"),
    ]
