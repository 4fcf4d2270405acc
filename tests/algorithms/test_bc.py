"""BC against an independent computation."""

import numpy as np
import torch as th

from sb3_dmpo import BC
from tests.toy_data import BatchRecorder, make_transitions


def test_updates_equal_a_computation_by_hand() -> None:
    """Five updates of a network with one hidden layer: backpropagation and Adam written out in NumPy."""
    model = BC(dataset=make_transitions(), batch_size=16, learning_rate=1e-2, policy_kwargs={"net_arch": [8]}, seed=0)
    model.policy.to(th.float64)
    parameters = [p.detach().numpy().copy() for p in model.policy.actor.parameters()]
    recorder = BatchRecorder()
    model.learn(5, callback=recorder)
    first, second = [np.zeros_like(p) for p in parameters], [np.zeros_like(p) for p in parameters]
    for t, batch in enumerate(recorder.batches, start=1):
        s, a = batch.observations.numpy(), batch.actions.numpy().astype(np.float64)
        w0, b0, w1, b1 = parameters
        hidden = s @ w0.T + b0
        active = np.maximum(hidden, 0.0)
        actions = np.tanh(active @ w1.T + b1)
        # derivative of the mean over all entries, through tanh
        d_out = 2.0 * (actions - a) / a.size * (1.0 - actions**2)
        d_hidden = d_out @ w1 * (hidden > 0)
        gradients = [d_hidden.T @ s, d_hidden.sum(axis=0), d_out.T @ active, d_out.sum(axis=0)]
        for p, m, v, g in zip(parameters, first, second, gradients, strict=True):
            m += 0.1 * (g - m)
            v += 0.001 * (g**2 - v)
            p -= 1e-2 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    assert t == 5
    for expected, actual in zip(parameters, model.policy.actor.parameters(), strict=True):
        np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=0, atol=1e-10)


def test_observations_are_scaled() -> None:
    data = make_transitions()
    model = BC(dataset=data, batch_size=16, policy_kwargs={"net_arch": [8]}, seed=0)
    recorder = BatchRecorder()
    model.learn(1, callback=recorder)
    scaled = (data.observations - data.observations.mean(axis=0)) / (data.observations.std(axis=0) + 1e-3)
    rows = [np.flatnonzero((data.actions == action).all(axis=1))[0] for action in recorder.batches[0].actions.numpy()]
    np.testing.assert_allclose(recorder.batches[0].observations.numpy(), scaled[rows], rtol=1e-4, atol=1e-5)


def test_clones_actions_in_the_units_of_the_environment() -> None:
    data = make_transitions()
    data.actions[:] = (0.5, -0.8)
    model = BC(dataset=data, batch_size=32, learning_rate=1e-2, policy_kwargs={"net_arch": [16]}, seed=0).learn(300)
    actions, _ = model.predict(data.observations)
    np.testing.assert_allclose(np.median(actions, axis=0), [0.25, 0.5], atol=0.05)
