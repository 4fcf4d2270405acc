"""AWAC against recorded updates of the published code."""

import pytest
import torch as th

from sb3_dmpo import AWAC
from tests import weighted_reference
from tests.reference_util import Replay

ACTORS = {name: (name, weighted_reference.gaussian_views) for name in ("actor", "actor_target")}


@pytest.fixture(params=[th.float64, th.float32])
def dtype(request: pytest.FixtureRequest) -> th.dtype:
    return request.param


@pytest.fixture(params=[("awac", "normalized"), ("awac_maxshift", "max_shifted")], ids=["awac", "awac_maxshift"])
def run(request: pytest.FixtureRequest, dtype: th.dtype) -> Replay:
    name, weight = request.param
    return Replay(name, AWAC, dtype, ACTORS | weighted_reference.CRITICS, {"advantage_weight": weight})


def test_reference_updates(run: Replay) -> None:
    weighted_reference.check_updates(run)


def test_reference_intermediate_values(run: Replay) -> None:
    weighted_reference.check_intermediate_values(run)
