"""``python -m vlm_lens`` is ``vlm-lens``."""

import sys

from vlm_lens.cli import main

if __name__ == "__main__":
    sys.exit(main())
