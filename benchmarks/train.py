"""Train an offline algorithm: ``python benchmarks/train.py --algo dmpo --dataset D4RL/pen/human-v2 --download -P``."""

import sys

from sb3_dmpo.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
