"""Whether a mixture is one: what the log says about posteriors, the gate and distances."""

import math
import warnings

import pytest
import torch as th

from sb3_dmpo import DMPO, MixAWAC
from sb3_dmpo.common.losses import mixture_diagnostics
from sb3_dmpo.dmpo import dmpo
from tests.contract import DATA, make

NAMES = {"mutual_information", "posterior_entropy", "gate_support", "gate_distance", "assigned_distance", "component_entropy"}


def test_sub_policies_that_part() -> None:
    """Every action is of one of two components for certain, and the gate takes the first one."""
    posterior = th.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    components = th.tensor([[1.0, 0.0], [-1.0, 0.0]]).expand(4, 2, 2)
    actions = components[th.arange(4), posterior.argmax(dim=1)]
    found = mixture_diagnostics(posterior, th.zeros(4, 1, dtype=th.long), components, actions)
    expected = {
        "mutual_information": math.log(2),
        "posterior_entropy": 0.0,
        "gate_support": 0.5,
        "assigned_distance": 0.0,
        "gate_distance": 1.0,
    }
    assert {name: pytest.approx(value.item(), abs=1e-6) for name, value in found.items()} == expected


def test_sub_policies_that_do_not() -> None:
    """A posterior that says the same of every action knows nothing."""
    posterior = th.tensor([[0.25, 0.75]]).expand(3, 2)
    actions = th.zeros(3, 2)
    found = mixture_diagnostics(posterior, th.ones(3, 1, dtype=th.long), th.full((3, 2, 2), 0.5), actions)
    entropy = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)
    assert found["mutual_information"].item() == pytest.approx(0.0, abs=1e-6)
    assert found["posterior_entropy"].item() == pytest.approx(entropy)
    assert found["gate_support"].item() == pytest.approx(0.75)
    assert found["gate_distance"].item() == found["assigned_distance"].item() == pytest.approx(math.sqrt(0.5))


@pytest.mark.parametrize("name", ["dmpo", "infodmpo", "mix_awac"])
def test_every_mixture_logs_them(name: str) -> None:
    model = make(name, dataset=DATA).learn(4)
    assert isinstance(model, DMPO | MixAWAC)
    found = model.diagnostics(model.sample_batch(64))
    assert set(found) == NAMES
    assert all(value.shape == () and bool(th.isfinite(value)) and value.item() >= -1e-6 for value in found.values())
    assert found["mutual_information"] + found["posterior_entropy"] <= math.log(model.n_components) + 1e-6


def test_a_mixture_that_is_none_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("dmpo", dataset=DATA, kl_coef=1e3).learn(60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.diagnostics(model.sample_batch(64))
    monkeypatch.setattr(dmpo, "PARTED_AFTER", 50)
    monkeypatch.setattr(dmpo, "PARTED_SHARE", 1.0)
    with pytest.warns(UserWarning, match="sub-policies have not parted"):
        model.diagnostics(model.sample_batch(64))
    monkeypatch.setattr(dmpo, "PARTED_SHARE", 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.diagnostics(model.sample_batch(64))
