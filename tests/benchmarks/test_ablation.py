"""The ablation of OneStepDMPO: its variants, what is trained, what is summed up and drawn."""

import csv
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import ablation
from sb3_dmpo import OneStepDMPO
from sb3_dmpo.cli.configs import parse_values

TOY = "sb3_dmpo/two-goals/demonstrations-v0"
FIELDS = ["algorithm", "dataset", "seed", "updates", "evaluation", "score"]


def value_of(command: list[str], option: str) -> str:
    return command[command.index(option) + 1]


def test_variants_are_none_each_alone_all_and_all_but_one() -> None:
    variants, options = ablation.variants(), list(ablation.OPTIONS)
    assert list(variants) == ["none", "all", *(f"all but {name}" for name in options), *(f"only {name}" for name in options)]
    assert len({str(sorted(arguments.items())) for arguments in variants.values()}) == len(variants)
    differing = {key for key in variants["all"] if variants["all"][key] != variants["all but supported gate"][key]}
    assert differing == {"gate"}


def test_all_is_the_setting_itself() -> None:
    model = OneStepDMPO("MlpPolicy", dataset=TOY, ema_decay=0.9995, device="cpu")
    arguments = parse_values({key: value for key, value in ablation.variants()["all"].items() if key != "critic_layer_norm"})
    for name, value in arguments.items():
        assert getattr(model, name) == value, name
    assert ablation.variants()["all"]["critic_layer_norm"] == "True" and model.policy.critic_layer_norm


@pytest.mark.parametrize("variant", list(ablation.variants()))
def test_every_variant_trains(variant: str) -> None:
    arguments: dict[str, Any] = parse_values(dict(ablation.variants()[variant]))
    policy_kwargs = {"net_arch": [8, 8], "critic_layer_norm": arguments.pop("critic_layer_norm")}
    OneStepDMPO("MlpPolicy", dataset=TOY, seed=0, batch_size=16, policy_kwargs=policy_kwargs, **arguments).learn(2)


def test_runs_are_collected_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def train(command: list[str], check: bool) -> None:
        commands.append(command)
        path = Path(value_of(command, "--results"))
        path.parent.mkdir(parents=True)
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(FIELDS)
            writer.writerow(["one_step_dmpo", value_of(command, "--dataset"), value_of(command, "--seed"), 100, "final", 1.0])

    monkeypatch.setattr(subprocess, "run", train)
    output = tmp_path / "ablation.csv"
    for _ in range(2):
        ablation.run("a/b-v0", 3, 100, tmp_path / "logs", output, evaluations=2, compiled=True)
    assert len(commands) == len(ablation.variants())
    assert all(value_of(command, "--eval-freq") == "50" and "compile:True" in command for command in commands)
    rows = ablation.read_rows(output)
    assert [row["variant"] for row in rows] == list(ablation.variants())
    assert {(row["dataset"], row["seed"]) for row in rows} == {("a/b-v0", "3")}
    # Those of another length are none of these runs.
    with pytest.raises(SystemExit, match=r"ablation.csv has runs of 100 updates on a/b-v0: pass -n 100 to go on with them"):
        ablation.run("a/b-v0", 3, 200, tmp_path / "logs", output)


def test_summary_is_mean_and_worst_of_the_second_half(tmp_path: Path) -> None:
    def rows(seed: int, scores: list[float]) -> list[dict[str, str]]:
        found = [("training", 10 * (place + 1), score) for place, score in enumerate(scores)]
        found[-1] = ("final", *found[-1][1:])
        return [
            {
                "variant": "none",
                "dataset": "a",
                "seed": str(seed),
                "evaluation": kind,
                "updates": str(updates),
                "score": str(score),
            }
            for kind, updates, score in found
        ]

    everything = rows(0, [90.0, 90.0, 2.0, 6.0]) + rows(1, [0.0, 0.0, 10.0, 20.0])
    assert ablation.summary(everything) == {("a", "none"): (9.5, 6.0)}
    ablation.draw(everything, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
