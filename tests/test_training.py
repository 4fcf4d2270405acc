"""What holds for training whatever the algorithm."""

import torch as th

from sb3_dmpo import DMPO
from tests.toy_data import make_transitions


def test_noise_and_minibatches_have_streams_of_their_own() -> None:
    """Seeded alike, the two generators would give the same numbers to the noise and to the choice of transitions."""
    model = DMPO("MlpPolicy", dataset=make_transitions(), policy_kwargs={"net_arch": [8]}, seed=3, device="cpu").learn(1)
    noise, buffer = model._noise_generator, model.replay_buffer.generator
    assert noise.initial_seed() != buffer.initial_seed()
    first, second = (th.rand(1000, generator=th.Generator().manual_seed(g.initial_seed())) for g in (noise, buffer))
    assert abs(float(th.corrcoef(th.stack([first, second]))[0, 1])) < 0.1
    twin = DMPO("MlpPolicy", dataset=make_transitions(), policy_kwargs={"net_arch": [8]}, seed=3, device="cpu")
    assert twin._noise_generator.initial_seed() == noise.initial_seed()
