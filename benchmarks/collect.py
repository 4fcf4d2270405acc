"""A dataset of your own: ``python benchmarks/collect.py --algo sac --model sac.zip --env Hopper-v5 --dataset my/sac-v0``."""

import sys

from sb3_dmpo.cli.main import collect

if __name__ == "__main__":
    sys.exit(collect())
