"""The report of `vlm-lens demo`: `study` finds, `page` renders, `write` saves."""
