"""``python -m stib_fast`` is the command ``stib``."""

import sys

try:
    from stib_fast.cli import main
except KeyboardInterrupt:  # the imports take seconds
    sys.exit(130)

sys.exit(main())
