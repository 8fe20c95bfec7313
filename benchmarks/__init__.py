"""What hooks cost; `overhead.py` is the script. Importing this keeps every contender offline."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = os.environ["PIP_NO_INDEX"] = "1"
