"""A dataset of your own: ``python benchmarks/collect.py --algo sac --model sac.zip --env Hopper-v5 --dataset my/sac-v0``."""

import sys

from sb3_dmpo.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["collect", *sys.argv[1:]]))
