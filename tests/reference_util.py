"""Replay recorded updates of the original implementations on our algorithms."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_dmpo.common.networks import EnsembleCritic
from sb3_dmpo.common.offline_algorithm import OfflineAlgorithm
from sb3_dmpo.common.type_aliases import Metrics, OfflineBatch
from sb3_dmpo.envs.spaces_only import SpacesOnlyEnv

FOLDER = Path(__file__).parent / "reference"
#: dtype -> tolerances of values, gradients and parameters
TOLERANCES = {th.float64: {"rtol": 0.0, "atol": 1e-9}, th.float32: {"rtol": 1e-4, "atol": 1e-5}}

#: A view of one parameter (or a slice of it), by the name that the recording gives it.
Views = dict[str, th.Tensor]


def linear_views(layer: nn.Linear, name: str) -> Views:
    return {f"{name}.weight": layer.weight, f"{name}.bias": layer.bias}


def mlp_views(net: nn.Sequential, prefix: str = "", last: str = "out") -> Views:
    """Hidden layers h0, h1, ... and the output layer."""
    layers = [layer for layer in net if isinstance(layer, nn.Linear)]
    names = [f"h{i}" for i in range(len(layers) - 1)] + [last] if last else [f"h{i}" for i in range(len(layers))]
    views: Views = {}
    for name, layer in zip(names, layers, strict=True):
        views |= linear_views(layer, prefix + name)
    return views


def ensemble_views(critic: EnsembleCritic) -> Views:
    """The critics one by one: q1.h0.weight, ..., q2.out.bias."""
    views: Views = {}
    for j in range(critic.n_critics):
        for i, layer in enumerate(critic.layers):
            name = f"q{j + 1}." + (f"h{i}" if i < len(critic.layers) - 1 else "out")
            views |= {f"{name}.weight": layer.weight[j], f"{name}.bias": layer.bias[j, 0]}
    return views


def gradient_copy(module: nn.Module, owned: set[int]) -> nn.Module:
    """A copy of a module that holds gradients in place of its parameters, NaN where none of ``owned`` (ids) has one."""
    shadow = copy.deepcopy(module)
    with th.no_grad():
        for parameter, held in zip(module.parameters(), shadow.parameters(), strict=True):
            has_gradient = id(parameter) in owned and parameter.grad is not None
            held.copy_(parameter.grad if has_gradient else th.full_like(held, th.nan))
    return shadow


class Replay:
    """
    A recorded run, replayed on a model.

    :param name: file of the recording
    :param algorithm: class of the model
    :param dtype: precision of the replay
    :param views: recorded network name -> (path of our module in the policy, its parameter views)
    :param arguments: constructor arguments besides those that every recording shares
    :param n_hidden: number of hidden layers
    :param unused: start of the recorded names of parameters that no computation reads and we do not have
    :param tolerance: absolute and relative tolerance; None: those of the precision
    """

    def __init__(
        self,
        name: str,
        algorithm: type[OfflineAlgorithm],
        dtype: th.dtype,
        views: dict[str, tuple[str, Callable[[Any], Views]]],
        arguments: dict[str, Any],
        n_hidden: int = 2,
        unused: str | None = None,
        tolerance: dict[str, float] | None = None,
    ) -> None:
        self.ref = np.load(FOLDER / f"{name}.npz")
        self.config = json.loads(str(self.ref["config"]))
        self.dtype = dtype
        self.views = views
        self.unused = unused
        self.tolerance = TOLERANCES[dtype] if tolerance is None else tolerance
        size, actions = self.config["state_dim"], self.config["action_dim"]
        env = SpacesOnlyEnv(spaces.Box(-np.inf, np.inf, (size,)), spaces.Box(-1.0, 1.0, (actions,)))
        arguments = {"learning_rate": self.config.get("lr", 3e-4), "batch_size": self.config["batch"]} | arguments
        arguments.setdefault("policy_kwargs", {}).setdefault("net_arch", [self.config["hidden"]] * n_hidden)
        self.model = algorithm("MlpPolicy", env=env, device="cpu", seed=0, **arguments)
        self.policy = self.model.policy.to(dtype)
        for net in self._recorded_nets("init"):
            with th.no_grad():
                self._each(net, "init", lambda view, value: view.copy_(th.as_tensor(value)))
        self.gradients: dict[str, Views] = {}

    def _recorded_nets(self, stage: str) -> list[str]:
        return list(dict.fromkeys(key.split("/")[1] for key in self.ref.files if key.startswith(stage + "/")))

    def _module(self, path: str) -> Any:
        return self.policy.get_submodule(path) if path else self.policy

    def _each(self, net: str, stage: str, act: Callable[[th.Tensor, np.ndarray], object]) -> None:
        path, views_of = self.views[net]
        views = views_of(self._module(path))
        recorded = {key.split("/", 2)[2] for key in self.ref.files if key.startswith(f"{stage}/{net}/")}
        if self.unused:
            recorded = {name for name in recorded if not f"{net}/{name}".startswith(self.unused)}
        assert recorded == set(views), (net, recorded ^ set(views))
        for name, view in views.items():
            act(view, self.ref[f"{stage}/{net}/{name}"])

    def batch(self, update: int, noise: dict[str, str], reward_factor: float = 1.0) -> OfflineBatch:
        """
        Batch of an update (1-based) with the recorded noise.

        :param update: number of the update
        :param noise: our name of a noise block -> recorded name
        :param reward_factor: factor on the recorded rewards
        """
        row = update - 1

        def tensor(key: str) -> th.Tensor:
            values = th.as_tensor(self.ref[key][row])
            return values.to(self.dtype) if values.is_floating_point() else values

        return OfflineBatch(
            tensor("data/state"),
            tensor("data/action"),
            tensor("data/next_state"),
            tensor("data/reward") * reward_factor,
            1.0 - tensor("data/not_done"),
            {name: tensor(f"noise/{recorded}") for name, recorded in noise.items()},
        )

    def update(self, batch: OfflineBatch) -> Metrics:
        """One update, with the gradients of every optimizer recorded at its step."""
        self.gradients = {}
        handles = [
            optimizer.register_step_pre_hook(lambda opt, args, kwargs, name=name: self._record(name, opt))
            for name, (optimizer, _, _) in self.model._optimizers.items()
        ]
        model = self.model
        for optimizer, schedule, _ in model._optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = schedule(1.0 - model._n_updates / self.config["updates"])
        model._n_updates += 1
        metrics = model.update(batch)
        for target in model._targets:
            if target.is_due(model._n_updates):
                target.move(model.tau)
        for handle in handles:
            handle.remove()
        return metrics

    def _record(self, name: str, optimizer: th.optim.Optimizer) -> None:
        owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for net, (path, views_of) in self.views.items():
            module = self._module(path)
            if any(id(p) in owned for p in module.parameters()):
                for layer, gradient in views_of(gradient_copy(module, owned)).items():
                    if not gradient.isnan().all():
                        self.gradients[f"grad_{name}/{net}/{layer}"] = {"": gradient.detach()}

    def close(self, actual: Any, key: str) -> None:
        """Assert that a value equals the recorded one within the tolerance of the precision."""
        actual = actual.detach().numpy() if isinstance(actual, th.Tensor) else np.asarray(actual)
        tolerance = dict(self.tolerance)
        if self.dtype == th.float32:
            # A small entry that is left of large terms has the rounding error of the terms.
            tolerance["atol"] = max(tolerance["atol"], 1e-6 * float(np.abs(self.ref[key]).max()))
        np.testing.assert_allclose(actual, self.ref[key], **tolerance, err_msg=key)

    def close_gradients(self, update: int) -> None:
        """Assert that exactly the recorded gradients were applied in this update, and that they agree."""
        prefix = f"u{update}/"
        recorded = {key.removeprefix(prefix) for key in self.ref.files if key.startswith(prefix + "grad_")}
        assert recorded == set(self.gradients), recorded ^ set(self.gradients)
        for key, value in self.gradients.items():
            self.close(value[""], prefix + key)

    def close_parameters(self, stage: str) -> None:
        """Assert that all parameters, targets included, equal the recorded ones after some updates."""
        for net in self._recorded_nets(stage):
            self._each(net, stage, lambda view, value, net=net: self._close_parameter(view, value, f"{stage}/{net}"))

    def _close_parameter(self, view: th.Tensor, value: np.ndarray, where: str) -> None:
        np.testing.assert_allclose(view.detach().numpy(), value, **self.tolerance, err_msg=where)

    def run(self, noise: dict[str, str], losses: dict[str, str], reward_factor: float = 1.0) -> None:
        """
        Ten updates; after the first two, compare losses and gradients, and parameters after 1, 2 and 10.

        :param noise: our name of a noise block -> recorded name
        :param losses: our name of a metric -> recorded name
        :param reward_factor: factor on the recorded rewards
        """
        for update in range(1, self.config["updates"] + 1):
            metrics = self.update(self.batch(update, noise, reward_factor))
            if update <= 2:
                compared = [name for name, recorded in losses.items() if f"u{update}/{recorded}" in self.ref.files]
                assert compared, "nothing to compare"
                for name in compared:
                    self.close(metrics[name], f"u{update}/{losses[name]}")
                self.close_gradients(update)
            if update in (1, 2, 10):
                self.close_parameters(f"after{update}")
