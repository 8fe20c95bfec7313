"""The parts of automatic explanation; `vlm_lens.analyses.explain` puts them together."""
