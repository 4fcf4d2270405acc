"""The tables of benchmarks/speed.py at their smallest: that they are made and say what they have to, not how fast it is."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

speed = pytest.importorskip("benchmarks.speed")
from benchmarks.timing import acting_tables, rows, seeds, tables, turns  # noqa: E402
from benchmarks.timing.server import Contenders, Server  # noqa: E402
from sb3_dmpo import ALGOS  # noqa: E402
from tests.dataset_helpers import make_dataset, random_episodes  # noqa: E402

TINY = ("--quick", "--seconds", "0.001", "--repeats", "2", "--threads", "1")


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """No processes to be started, no warm-up, little data, and nothing that has to be compiled."""

    def contenders(module: str, **options: Any) -> Contenders:
        return Contenders(module)

    monkeypatch.setattr(turns, "Server", contenders)
    monkeypatch.setattr(tables, "has_peers", lambda: False)
    monkeypatch.setattr(speed, "QUICK", turns.Effort(0.001, 2, 1))
    monkeypatch.setattr("benchmarks.timing.ours.N_TRANSITIONS", 1000)
    monkeypatch.setattr("benchmarks.timing.ours.VARIANTS", {"default": {"compile": False}})
    monkeypatch.setattr(acting_tables, "ZOO_EVAL_EPISODES", 2)
    monkeypatch.setattr(acting_tables, "MAX_EPISODE_STEPS", 20)


@pytest.mark.usefixtures("in_this_process")
def test_the_train_table_compares_with_stable_baselines3(tmp_path: Path) -> None:
    found = speed.main([*TINY, "--only", "train", "--algos", "bc", "--output", str(tmp_path / "speed.csv")])
    assert [row["system"] for row in found] == ["SB3 TD3", "sb3_dmpo"]
    assert found[1]["ratio_to"] == "SB3 TD3" and float(found[1]["ratio"]) > 0
    with open(tmp_path / "speed.csv", newline="") as file:
        written = list(csv.DictReader(file))
    assert tuple(written[0]) == rows.COLUMNS
    assert [float(row["median"]) for row in written] == [float(row["median"]) for row in found]
    for column in ("case", "setting", "measure", "command", "commit", "cpu", "torch", "threads"):
        assert all(row[column] for row in written), column


def test_the_train_table_has_no_algorithm_that_fits_a_model_first(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(tables, "train_rows", lambda algos, *_: asked.append(algos) or iter(()))
    speed.main([*TINY, "--only", "train"])
    assert asked == [[name for name, cls in ALGOS.items() if not hasattr(cls, "learn_model")]]


@pytest.mark.usefixtures("in_this_process")
def test_the_scaling_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "SCALING", {"|Z|": [{"n_components": n} for n in (8, 4)]})
    found = speed.main([*TINY, "--only", "scaling"])
    assert [(row["case"], row["setting"].rpartition(" ")[2]) for row in found] == [
        ("dmpo by |Z|", "8"),
        ("dmpo by |Z|", "4"),
        ("infodmpo by |Z|", "8"),
        ("infodmpo by |Z|", "4"),
    ]
    assert float(found[0]["ratio"]) == 1.0


@pytest.mark.usefixtures("in_this_process")
def test_the_arithmetic_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "COUNTED", ("bc",))
    (found,) = speed.main([*TINY, "--only", "arithmetic"])
    batch, observation, action, width = 256, 17, 6, 256
    forward = batch * (observation * width + width * width + width * action)
    # Gradients of all weights, and of the inputs of all layers but the first.
    assert float(found["median"]) == pytest.approx(2e-6 * (3 * forward - batch * observation * width), rel=1e-3)
    assert found["ratio_to"] == "SB3 TD3" and 0 < float(found["ratio"]) < 0.5


@pytest.mark.usefixtures("in_this_process")
def test_the_seeds_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeds, "SETTINGS", ({"batch_size": 8, "policy_kwargs": {"net_arch": [8]}},))
    found = speed.main([*TINY, "--only", "seeds", "--algos", "bc"])
    assert [row["variant"] for row in found] == [seeds.ALONE, seeds.IN_TURN, seeds.AT_ONCE, seeds.AT_ONCE]
    assert [row.get("ratio_to") for row in found] == [None, None, seeds.IN_TURN, seeds.ALONE]
    assert all(row["measure"] == "updates of every seed per CPU-second" for row in found)


@pytest.mark.usefixtures("in_this_process")
def test_the_predict_table() -> None:
    found = speed.main([*TINY, "--only", "predict", "--algos", "dmpo"])
    assert [row["setting"].split()[0] for row in found] == ["1", "1", "10", "10", "256", "256"]
    assert all(float(row["ratio"]) > 0 for row in found if row["system"] == "sb3_dmpo")


@pytest.mark.usefixtures("in_this_process")
def test_the_eval_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    assert speed.main([*TINY, "--only", "eval", "--algos", "bc"]) == []
    space = spaces.Box(-np.inf, np.inf, (11,), np.float64)
    actions = spaces.Box(-1.0, 1.0, (3,), np.float32)
    make_dataset(acting_tables.EVAL_DATASET, space, actions, random_episodes(space, actions))
    found = speed.main([*TINY, "--only", "eval", "--algos", "bc"])
    assert ["the environment alone" in row["measure"] for row in found] == [False, False, True, True]
    for seconds, share in (found[:2], found[2:]):
        assert "CPU-seconds" in seconds["measure"] and 0.0 < float(share["median"]) < 100.0


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_the_data_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acting_tables, "SB3_TRANSITIONS", 1000)
    # Fewer would fit into memory that the process has at hand.
    found = speed.main([*TINY, "--only", "data", "--transitions", "100000"])
    assert [row["case"] for row in found[::3]] == [
        *("first load", "second load", "memory-mapped load", "copy on disk", "sampling")
    ]
    anonymous = {row["case"]: float(row["median"]) for row in found if "page cache" in row["measure"]}
    assert anonymous["memory-mapped load"] < anonymous["second load"]


@pytest.mark.slow
def test_a_contender_in_a_process_of_its_own() -> None:
    server = Server("benchmarks.timing.ours")
    try:
        server.ask(do="build", name="bc", factory="train", options={"algo": "bc"})
        answer = server.ask(do="run", name="bc", n=3)
        assert answer["wall"] > 0 and answer["cpu"] > 0
        with pytest.raises(RuntimeError, match=r"(?s)unknown failed.*KeyError: 'unknown'"):
            server.ask(do="run", name="unknown", n=1)
    finally:
        server.close()


def test_ratios_are_taken_repeat_by_repeat() -> None:
    row = rows.measured([1.0, 20.0, 300.0], [2.0, 40.0, 600.0], "other")
    assert (row["median"], row["ratio"], row["ratio_low"], row["ratio_high"]) == ("20", "0.5", "0.5", "0.5")


def test_what_is_not_measured_stays_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "speed.csv"
    old = [("train", "bc", 1), ("train", "bc", 2), ("train", "iql", 1), ("predict", "bc", 1)]
    rows.write(path, [{"table": table, "case": case, "threads": n, "median": "old"} for table, case, n in old])
    rows.write(path, [{"table": "train", "case": "bc", "threads": 1, "median": "new"}])
    with open(path, newline="") as file:
        found = [(row["table"], row["case"], row["threads"], row["median"]) for row in csv.DictReader(file)]
    assert found == [
        ("predict", "bc", "1", "old"),
        ("train", "bc", "2", "old"),
        ("train", "iql", "1", "old"),
        ("train", "bc", "1", "new"),
    ]


@pytest.mark.slow
def test_a_run_in_pieces_is_one_run() -> None:
    from benchmarks.timing.ours import OneRun, make_model

    model = make_model("bc")
    run = OneRun(model)
    for n in (3, 1, 2):
        run(n)
    assert model.num_timesteps == model._n_updates == 6


def test_a_failure_in_a_run_reaches_the_caller() -> None:
    from benchmarks.timing.ours import OneRun, make_model

    model = make_model("bc")
    model.update = None  # type: ignore[assignment]
    with pytest.raises(TypeError, match="not callable"):
        OneRun(model)(1)


def test_every_algorithm_has_a_setting_in_words() -> None:
    from benchmarks.timing.ours import setting

    for name in ALGOS:
        arguments, words = setting(name, {})
        assert f"batch {arguments['batch_size']}" in words
    assert setting("dmpo", {"n_components": 4})[1] == "batch 256, 2x256, |Z| 4"


def test_an_unknown_table_or_algorithm_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--only", "nothing"], "'nothing' is no table"),
        (["--algos", "ppo"], "'ppo' is no algorithm"),
        (["--variants", "x"], "'x' is no variant"),
    ):
        with pytest.raises(SystemExit):
            speed.main([*TINY, *arguments])
        assert message in capsys.readouterr().err
