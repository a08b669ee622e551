"""``python -m stib_fast`` is the command ``stib``."""

import sys

from stib_fast.cli import main

sys.exit(main())
