"""Watch and score a trained model: ``python -m sb3_dmpo.enjoy --algo dmpo --dataset D4RL/pen/human-v2``."""

import sys

from sb3_dmpo.cli.main import enjoy

if __name__ == "__main__":
    sys.exit(enjoy())
