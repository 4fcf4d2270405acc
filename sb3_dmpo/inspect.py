"""What is inside a model's zip: ``python -m sb3_dmpo.inspect model.zip``."""

import sys

from sb3_dmpo.cli.model.inspect import main

if __name__ == "__main__":
    sys.exit(main())
