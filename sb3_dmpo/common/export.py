"""The whole policy as one graph, for machines that have neither this package nor PyTorch."""

import contextlib
import copy
import importlib.util
import logging
import os
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_dmpo.common.policies import OfflinePolicy
from sb3_dmpo.files.save_util import atomic_write

#: Name of the input of a policy with Box observations; Dict observations have one input per key.
OBSERVATION_INPUT = "observation"
ACTION_OUTPUT = "action"
#: The state that goes in as ``hidden`` comes out as ``next_hidden``.
STATE_PREFIX = "next_"
#: Version of the operators in ONNX files: old enough for the runtimes of the last years.
ONNX_OPSET = 18
#: A number that is the size of nothing else: the exporter takes equal sizes for the same size.
EXAMPLE_BATCH_SIZE = 1009


class ExportedPolicy(nn.Module):
    """
    Deterministic ``predict`` as a function of tensors: raw observations in, actions of the environment out; of a policy that
    remembers the episode, its state in and the state for the next call out.

    :param policy: the policy
    """

    def __init__(self, policy: OfflinePolicy) -> None:
        super().__init__()
        self.policy = copy.deepcopy(policy).cpu()
        self.policy.set_training_mode(False)
        for name in policy.gate_networks:
            network = self.policy.acting(name) if name in policy.acting_networks else getattr(self.policy, name)
            network.double()
        assert isinstance(policy.action_space, spaces.Box)
        self.action_dtype = th.from_numpy(np.empty(0, policy.action_space.dtype)).dtype
        # As in ``ActionUnscaler``, in double precision.
        self.register_buffer("low", th.from_numpy(policy.action_space.low.astype(np.float64)))
        self.register_buffer("high", th.from_numpy(policy.action_space.high.astype(np.float64)))
        self.low: th.Tensor
        self.high: th.Tensor
        self.has_unit_bounds = bool(np.all(policy.action_space.low == -1.0) and np.all(policy.action_space.high == 1.0))

    def forward(self, observation: th.Tensor | dict[str, th.Tensor], *state: th.Tensor) -> th.Tensor | tuple[th.Tensor, ...]:
        """
        Actions of the environment, shape ``(batch, action_size)``, and the new state, if the policy has any.

        :param observation: raw float32 observations, shape ``(batch, *shape)``, or a dict of them by canonical key
        :param state: the state, in the order of ``state_names``
        """
        parts = list(observation.values()) if isinstance(observation, dict) else [observation]
        # Not flatten(1), which has nothing to flatten in numbers of shape (batch,).
        flat = th.cat([part.reshape(part.shape[0], -1) for part in parts], dim=1)
        actions, after = self.policy.step(flat, *state)
        actions = actions.clamp(-1.0, 1.0)
        if not self.has_unit_bounds:
            actions = self.low + 0.5 * (actions.double() + 1.0) * (self.high - self.low)
            actions = th.minimum(th.maximum(actions, self.low), self.high)
        actions = actions.to(self.action_dtype)
        return (actions, *after) if after else actions


def example_observations(policy: OfflinePolicy, batch_size: int) -> th.Tensor | dict[str, th.Tensor]:
    """
    Observations of zeros in the form that :class:`ExportedPolicy` takes.

    :param policy: the policy
    :param batch_size: how many
    """
    space = policy.observation_space
    if isinstance(space, spaces.Dict):
        return {key: th.zeros(batch_size, *(leaf.shape or ())) for key, leaf in space.spaces.items()}
    assert space.shape is not None
    return th.zeros(batch_size, *space.shape)


def export_program(policy: OfflinePolicy) -> th.export.ExportedProgram:
    """
    The policy as a ``torch.export`` program with a dynamic batch.

    :param policy: the policy
    """
    observation = example_observations(policy, batch_size=EXAMPLE_BATCH_SIZE)
    state = tuple(th.from_numpy(array) for array in policy.initial_state(EXAMPLE_BATCH_SIZE))
    batch = {0: th.export.Dim("batch", min=1)}
    shapes: Any = {key: batch for key in observation} if isinstance(observation, dict) else batch
    dynamic_shapes = (shapes, tuple(batch for _ in state)) if state else (shapes,)
    with th.no_grad():
        return th.export.export(ExportedPolicy(policy), (observation, *state), dynamic_shapes=dynamic_shapes, strict=False)


@contextlib.contextmanager
def _less_talkative(name: str) -> Iterator[None]:
    """
    Let a logger pass errors only.

    :param name: name of the logger
    """
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _check_keys(keys: list[str], taken: set[str]) -> None:
    """
    Refuse keys of Dict observations that a graph needs for something else: no runtime could read it.

    :param keys: the keys
    :param taken: names of what is no observation
    :raises ValueError: one of the keys is among them
    """
    for key in keys:
        if key in taken:
            raise ValueError(
                f"The observations have the key '{key}', which in an ONNX file of this policy is the name of something else. "
                "Rename the key in the environment and in the dataset, and train again; a .pt2 file may have any keys."
            )


def _onnx_bytes(policy: OfflinePolicy, metadata: dict[str, str]) -> bytes:
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"Writing ONNX files needs {' and '.join(missing)}: pip install 'sb3_dmpo[export]'.")
    space = policy.observation_space
    keys = list(space.spaces) if isinstance(space, spaces.Dict) else []
    inputs = [*(keys or [OBSERVATION_INPUT]), *policy.state_names]
    outputs = [ACTION_OUTPUT, *(STATE_PREFIX + name for name in policy.state_names)]
    _check_keys(keys, {*policy.state_names, *outputs})
    with warnings.catch_warnings(), _less_talkative("torch.onnx"):
        # PyTorch's exporter speaks of its own deprecations, and of torchvision.
        warnings.simplefilter("ignore")
        program = th.onnx.export(
            export_program(policy),
            input_names=inputs,
            output_names=outputs,
            opset_version=ONNX_OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    # Weights and results in between, which the exporter names.
    _check_keys(
        keys, {tensor.name for tensor in model.graph.initializer} | {name for node in model.graph.node for name in node.output}
    )
    for value in (*model.graph.input, *model.graph.output):
        # The exporter calls it s17 or so.
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    # Shapes in between, with that name in them; runtimes infer them.
    del model.graph.value_info[:]
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    content: bytes = model.SerializeToString()
    return content


def export_policy(policy: OfflinePolicy, path: str | os.PathLike[str], metadata: dict[str, str] | None = None) -> None:
    """
    Write a policy as one graph: scaling of the observations, networks, gate, and the way back to the environment's
    actions; what ``predict(observation, deterministic=True)`` returns, for any number of observations.

    A policy that remembers the episode (MAPLE, Decision Transformer) has its state as further inputs, named as the fields of
    what ``predict`` returns (``hidden``, ``last_actions``), and the state for the next call as further outputs
    (``next_hidden``, ``next_last_actions``). An episode begins with the state of ``policy.initial_state(n)``.

    An ONNX file has an input ``"observation"``, or one per key of a Dict, shape ``(batch, *shape)`` and float32, and the
    output ``"action"``. A ``.pt2`` file holds a ``torch.export`` program that takes a tensor or a dict of tensors. What
    ``predict`` checks (shapes, finite numbers) is not checked in a graph.

    :param path: file ending in ``.onnx`` or ``.pt2``
    :param policy: the policy
    :param metadata: texts that go into the file
    :raises ValueError: another ending, or a key of the observations is a name that an ONNX file needs for something else
    :raises ImportError: onnx or onnxscript is missing
    """
    path = pathlib.Path(path)
    if path.suffix == ".onnx":
        content = _onnx_bytes(policy, metadata or {})
        with atomic_write(path) as file:
            file.write(content)
    elif path.suffix == ".pt2":
        program = export_program(policy)
        with atomic_write(path) as file:
            th.export.save(program, file, extra_files=metadata)
    else:
        raise ValueError(f"{path} does not say what to write: let it end in .onnx (ONNX) or .pt2 (torch.export).")
