"""``python -m vlm_lens`` is ``vlm-lens``."""

import sys

from vlm_lens.cli import main

sys.exit(main())
