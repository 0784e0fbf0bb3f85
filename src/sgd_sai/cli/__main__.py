"""`python -m sgd_sai.cli COMMAND …`."""

import sys

from sgd_sai.cli import main

if __name__ == "__main__":  # the processes of --jobs import this, too
    sys.exit(main())
