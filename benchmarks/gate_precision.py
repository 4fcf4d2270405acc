"""
What the gate's bfloat16 changes in an update of DMPO: ``python benchmarks/gate_precision.py zoo/hopper/medium-v0``.

Trains in float32 and then computes the same updates with the gate in both precisions, without taking them.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import torch as th

from sb3_dmpo import DMPO
from sb3_dmpo.cli.results import append_lines, commit, csv_line
from sb3_dmpo.common.type_aliases import OfflineBatch

RESULTS = Path(__file__).parent / "results" / "gate_precision.csv"
N_BATCHES = 20


def parts(model: DMPO, batch: OfflineBatch, dtype: str) -> dict[str, th.Tensor]:
    """
    What of an update depends on the gate.

    :param model: the model
    :param batch: the minibatch
    :param dtype: precision of the gate
    """
    model.gating_dtype = dtype
    loss, losses = model.actor_loss(batch)
    gradients = th.autograd.grad(loss, model._optimizers["actor"][2])
    policy = model.policy
    table, _ = policy.gate_table(batch.observations, policy.actor, policy.critic, model.gate_dtype)
    values = policy.gated_values(batch.observations, policy.actor, policy.critic, model.gate_dtype)
    gradient = th.cat([part.flatten() for part in gradients])
    return {
        "table": table,
        "values": values,
        "gradient": gradient,
        "kl": losses["kl"].detach(),
        "targets": model.target_q_values(batch),
    }


def comparison(model: DMPO) -> dict[str, float]:
    """
    Means over minibatches of how the precisions differ.

    :param model: a trained model
    """
    sums: dict[str, float] = defaultdict(float)
    model._n_updates += model.policy_delay - model._n_updates % model.policy_delay
    for _ in range(N_BATCHES):
        batch = model.sample_batch(model.batch_size)
        exact, reduced = parts(model, batch, "float32"), parts(model, batch, "bfloat16")
        errors = reduced["table"] - exact["table"]
        difference = reduced["gradient"] - exact["gradient"]
        row = {
            "mean_abs_q": exact["table"].abs().mean(),
            "spread_over_components": (exact["table"].amax(dim=1) - exact["table"].amin(dim=1)).mean(),
            "prior_logit_error": (errors - errors.mean(dim=1, keepdim=True)).abs().mean(),
            "same_component": (exact["table"].argmax(dim=1) == reduced["table"].argmax(dim=1)).float().mean(),
            "lost_value_of_choice": (exact["values"] - reduced["values"]).mean(),
            "target_difference": (reduced["targets"] - exact["targets"]).mean(),
            "kl_float32": exact["kl"],
            "kl_bfloat16": reduced["kl"],
            "actor_gradient_cosine": th.cosine_similarity(exact["gradient"], reduced["gradient"], dim=0),
            "actor_gradient_relative_difference": difference.norm() / exact["gradient"].norm(),
        }
        for name, value in row.items():
            sums[name] += float(value) / N_BATCHES
    return dict(sums)


def main() -> None:
    """Train, compare, print, and append a row to the CSV file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    th.set_num_threads(1)
    model = DMPO("MlpPolicy", dataset=options.dataset, seed=0, device="cpu", compile=False, gating_dtype="float32")
    model.learn(options.updates)
    command = f"python benchmarks/gate_precision.py {options.dataset} --updates {options.updates}"
    row = {"dataset": options.dataset, "updates": options.updates}
    row |= {name: f"{value:.5g}" for name, value in comparison(model).items()}
    row |= {"command": command, "commit": commit()}
    for name, value in row.items():
        print(f"{name:38s} {value}")
    append_lines(options.output, csv_line(list(row.values())), csv_line(list(row)))


if __name__ == "__main__":
    main()
