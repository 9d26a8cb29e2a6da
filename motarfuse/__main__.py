"""``python -m motarfuse`` is the command ``motarfuse``."""

import sys

from motarfuse.cli.main import main

sys.exit(main())
