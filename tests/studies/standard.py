"""What the standard tests of studies run on: every study there is, tiny models and tiny data."""

from __future__ import annotations

from vlm_lens.studies.known import studies
from vlm_lens.studies.options import Study

STUDIES = [study for study in studies() if isinstance(study, Study)]
