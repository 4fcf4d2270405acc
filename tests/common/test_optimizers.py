"""Steps of optimizers."""

from typing import Any

import pytest
import torch as th
from torch import nn

from sb3_dmpo.common.optimizers import clipped, make_optimizer, optimizer_step
from tests.contract import DATA, assert_same, make


def train(step: Any, optimizer_class: type[th.optim.Optimizer], **arguments: Any) -> dict[str, Any]:
    th.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 2))
    parameters = list(net.parameters())
    optimizer = make_optimizer(optimizer_class, parameters, 1e-2, arguments)
    for _ in range(5):
        gradients = list(th.autograd.grad(net(th.randn(3, 5)).square().sum(), parameters))
        gradients[0] = gradients[0].t().contiguous().t()  # in another order in memory
        step(optimizer, parameters, gradients)
    return {"net": net.state_dict(), "optimizer": optimizer.state_dict()}


def plain_step(optimizer: th.optim.Optimizer, parameters: list[nn.Parameter], gradients: list[th.Tensor]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.contiguous()
    optimizer.step()


@pytest.mark.parametrize(
    ("optimizer_class", "arguments"),
    [
        (th.optim.Adam, {}),
        (th.optim.Adam, {"betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1}),
        (th.optim.AdamW, {"weight_decay": 0.1}),
        (th.optim.Adam, {"amsgrad": True}),
        (th.optim.Adam, {"foreach": True}),
        (th.optim.SGD, {"momentum": 0.9}),
    ],
)
def test_step_is_the_optimizers_own(optimizer_class: type[th.optim.Optimizer], arguments: dict[str, Any]) -> None:
    assert_same(train(optimizer_step, optimizer_class, **arguments), train(plain_step, optimizer_class, **arguments))


@pytest.mark.parametrize("bound", [0.1, 100.0])
def test_gradients_are_clipped_as_torch_does(bound: float) -> None:
    parameters = [nn.Parameter(th.zeros(shape)) for shape in ((3, 2), (4,))]
    gradients = [th.randn(parameter.shape) for parameter in parameters]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    nn.utils.clip_grad_norm_(parameters, bound)
    for parameter, gradient in zip(parameters, clipped(gradients, bound), strict=True):
        th.testing.assert_close(gradient, parameter.grad)


def test_hooks_of_optimizers_run() -> None:
    model = make("bc", dataset=DATA)
    seen: list[bool] = []
    model.actor_optimizer.register_step_pre_hook(
        lambda optimizer, args, kwargs: seen.append(model.policy.actor.mu[0].weight.grad is not None)
    )
    model.learn(3)
    assert seen == [True] * 3
