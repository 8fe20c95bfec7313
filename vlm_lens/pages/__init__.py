"""Pages that can be read for ever: what they have in common, whatever they show."""
