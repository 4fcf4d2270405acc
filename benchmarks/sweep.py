"""A grid of runs: ``python benchmarks/sweep.py --algos dmpo awac --seeds 0-4 --jobs 4`` (``--cluster slurm`` on a cluster)."""

import sys

from sb3_dmpo.cli.main import sweep

if __name__ == "__main__":
    sys.exit(sweep())
