#!/usr/bin/env bash
# Most runs behind tables 2 to 8 and the figures of benchmarks/README.md, from scratch: days on two CPU cores, so give it a cluster.
#   benchmarks/paper_runs.sh --jobs 4                                     on this machine, four at a time
#   benchmarks/paper_runs.sh --cluster slurm --gres gpu:1 --jobs 50       on SLURM
# Run it again after an interruption: what is finished is skipped, and the rest goes on from its checkpoints.
# These are the stand-in sets, which have to be in MINARI_DATASETS_PATH; the paper's own data and lengths: sb3_dmpo sweep --table benchmarks/paper/table_4.yml.
# FAST and SLOW are the methods with five seeds and with three.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python}
RUNS=${RUNS:-sweeps}
RESULTS=${RESULTS:-benchmarks/results}
PEN=zoo/pen/noisy-v0
DOOR=zoo/door/human-v0
MEDIUM=zoo/hopper/medium-v0
MIXED=zoo/hopper/mixed-v0
FAST=${FAST:-dmpo infodmpo awac mix_awac lp_awac td3_bc iql bc}
SLOW=${SLOW:-cql lapo diffusion_ql decision_transformer}

sweep() { # name of the results, then options of sweep.py; those of this script come last but for train.py's own
    local name=$1
    shift
    $PYTHON benchmarks/sweep.py --folder "$RUNS/$name" --results "$RESULTS/$name.csv" "$@"
}

# Word splitting of lists is meant.
# shellcheck disable=SC2086
{
    sweep toy --algos $FAST $SLOW --seeds 0-4 "$@" -- --eval-freq 500 --log-interval 250
    sweep toy --algos one_step_dmpo --seeds 0-9 "$@" -- --eval-freq 500 --log-interval 250
    sweep adroit --algos $FAST --datasets "$PEN" "$DOOR" --seeds 0-4 -n 10000 "$@"
    sweep adroit --algos $SLOW --datasets "$PEN" "$DOOR" --seeds 0-2 -n 10000 "$@"
    sweep components --algos infodmpo --datasets "$PEN" --seeds 0-4 -n 10000 --vary n_components 4 8 16 32 "$@"
    sweep hopper --algos $FAST --datasets "$MEDIUM" "$MIXED" --seeds 0-2 -n 20000 "$@"
    sweep hopper --algos $SLOW --datasets "$MEDIUM" "$MIXED" --seeds 0-2 -n 20000 "$@"
    sweep hopper_long --algos dmpo infodmpo awac td3_bc --datasets "$MIXED" --seeds 0 -n 200000 "$@"
}

model() { # name of the results, algorithm, dataset, seed (0)
    local id=${3//\//-} seed=${4:-0}
    [ "$1" = toy ] && id=TwoGoals-v0
    echo "$RUNS/$1/$2/$id/seed_$seed/$2/${id}_1/$id.zip"
}

$PYTHON benchmarks/figure_data.py toy TD3+BC="$(model toy td3_bc "")" AWAC="$(model toy awac "")" \
    LP-AWAC="$(model toy lp_awac "")" DMPO="$(model toy dmpo "")" OneStepDMPO="$(model toy one_step_dmpo "")"
$PYTHON benchmarks/figure_data.py bellman --dataset "$MIXED" AWAC="$(model hopper awac "$MIXED")" \
    mixAWAC="$(model hopper mix_awac "$MIXED")" LP-AWAC="$(model hopper lp_awac "$MIXED")" DMPO="$(model hopper dmpo "$MIXED")"
MUJOCO_GL=${MUJOCO_GL:-egl} $PYTHON benchmarks/figure_data.py episode --dataset "$PEN" infoDMPO="$(model adroit infodmpo "$PEN" 1)"
$PYTHON benchmarks/tables.py
$PYTHON benchmarks/figures.py
