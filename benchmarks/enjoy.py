"""Watch and score a trained model: ``python benchmarks/enjoy.py --algo dmpo --dataset D4RL/pen/human-v2``."""

import sys

from sb3_dmpo.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["enjoy", *sys.argv[1:]]))
