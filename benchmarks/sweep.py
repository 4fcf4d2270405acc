"""A grid of runs: ``python benchmarks/sweep.py --algos dmpo awac --seeds 0-4 --jobs 4`` (``--cluster slurm`` on a cluster)."""

import sys

from sb3_dmpo.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))
