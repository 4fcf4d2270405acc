"""Train an offline algorithm: ``python -m sb3_dmpo.train --algo dmpo --dataset D4RL/pen/human-v2 --download -P``."""

import sys

from sb3_dmpo.cli.main import train

if __name__ == "__main__":
    sys.exit(train())
