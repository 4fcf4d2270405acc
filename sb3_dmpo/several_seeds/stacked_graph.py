"""
One recorded update for several models at once: every operation of the graph is batched over a new first axis, the models'.

Most operations are batched by ``torch.func.vmap``. A few are spelled out here: those that vmap does not know (lists of
tensors, operators of this package) and matrix products with a bias, for which it needs an operation more.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch as th
from torch.fx import GraphModule, Interpreter
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

#: Operations that treat every number alone, whatever the shapes are: they take the stacked tensors as they are.
_ELEMENTWISE = tuple(f"aten::{name}" for name in ("_foreach_add", "_foreach_lerp", "_foreach_mul", "_foreach_addcmul"))
_ELEMENTWISE += ("aten::mish_backward",)
#: Operations that vmap does not know, this package's own among them, which are made for what fits into the cache: one model
#: after the other.
_ONE_BY_ONE = ("sb3_dmpo::", "aten::_scaled_dot_product_flash_attention_for_cpu")


class Stacked:
    """
    A tensor with one row per model.

    :param tensor: shape ``(n_models, ...)``
    """

    __slots__ = ("tensor",)

    def __init__(self, tensor: th.Tensor) -> None:
        self.tensor = tensor


def _is_stacked(value: Any) -> bool:
    return isinstance(value, Stacked)


def _plain(value: Any) -> Any:
    return value.tensor if isinstance(value, Stacked) else value


def _stack(values: Any) -> Any:
    return tree_map(lambda value: Stacked(value) if isinstance(value, th.Tensor) else value, values)


class _StackedInterpreter(Interpreter):
    """
    Runs a graph with some inputs stacked; what does not depend on them is computed once.

    :param graph: made for one model
    :param n_models: number of rows
    """

    def __init__(self, graph: GraphModule, n_models: int) -> None:
        super().__init__(graph)
        self.n_models = n_models

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target is operator.getitem:  # one of several results
            return args[0][args[1]]
        values, structure = tree_flatten((args, kwargs))
        stacked = [i for i, value in enumerate(values) if _is_stacked(value)]
        if not stacked:
            return target(*args, **kwargs)
        name = str(target.name()) if isinstance(target, th._ops.OpOverload) else ""  # type: ignore[no-untyped-call]
        if name.startswith(_ELEMENTWISE):
            args, kwargs = tree_unflatten([_plain(value) for value in values], structure)
            return _stack(target(*args, **kwargs))
        if name.startswith(_ONE_BY_ONE):
            return self._one_by_one(target, values, structure)
        if name in ("aten::addmm", "aten::baddbmm") and len(stacked) == len(values) == 3:
            return Stacked(_product_with_bias(*(value.tensor for value in values)))

        missing: set[int] = set()

        def of_one(*rows: th.Tensor) -> Any:
            full = list(values)
            for i, row in zip(stacked, rows, strict=True):
                full[i] = row
            args, kwargs = tree_unflatten(full, structure)
            result = target(*args, **kwargs)
            if not isinstance(result, tuple):
                return result
            # Gradients that nobody wants are None, which vmap does not return.
            missing.update(i for i, value in enumerate(result) if value is None)
            return tuple(value for value in result if value is not None)

        results = _stack(th.vmap(of_one)(*(values[i].tensor for i in stacked)))
        if not missing:
            return results
        found = iter(results)
        return tuple(None if i in missing else next(found) for i in range(len(results) + len(missing)))

    def _one_by_one(self, target: Callable[..., Any], values: list[Any], structure: Any) -> Any:
        results = []
        for i in range(self.n_models):
            args, kwargs = tree_unflatten([v.tensor[i] if isinstance(v, Stacked) else v for v in values], structure)
            tensors, structure_of_result = tree_flatten(target(*args, **kwargs))
            results.append(tensors)
        return tree_unflatten([Stacked(th.stack(rows)) for rows in zip(*results, strict=True)], structure_of_result)


def _product_with_bias(bias: th.Tensor, left: th.Tensor, right: th.Tensor) -> th.Tensor:
    """``bias + left @ right`` with one or two leading axes, in one batched product."""
    if left.dim() == 3:
        return th.baddbmm(bias.unsqueeze(1) if bias.dim() == 2 else bias, left, right)
    product = th.baddbmm(*(tensor.flatten(0, 1) for tensor in (bias, left, right)))
    return product.view(*left.shape[:2], *product.shape[1:])


def stack_graph(
    graph: GraphModule,
    inputs: Sequence[th.Tensor],
    is_stacked: Sequence[bool],
    n_models: int,
) -> GraphModule:
    """
    The graph for several models: stacked inputs are changed in place where it changes single ones, every result is stacked.

    Making it does what the graph does once, for real.

    :param graph: for one model, returning a list of tensors
    :param inputs: what it is called with, those of the models stacked, shape ``(n_models, ...)``
    :param is_stacked: which inputs are stacked; the others are the same for all models
    :param n_models: number of models
    """

    def stacked(*tensors: th.Tensor) -> list[th.Tensor]:
        arguments = [Stacked(tensor) if own else tensor for tensor, own in zip(tensors, is_stacked, strict=True)]
        results = _StackedInterpreter(graph, n_models).run(*arguments)
        return [value.tensor if isinstance(value, Stacked) else value.expand(n_models) for value in results]

    return make_fx(stacked)(*inputs)
