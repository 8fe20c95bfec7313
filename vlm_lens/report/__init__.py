"""Reports: what the commands found, as pages that can be read for ever."""
