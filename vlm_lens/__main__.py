"""``python -m vlm_lens`` is ``vlm-lens``."""

import sys


def main() -> int:
    """Runs a command; Ctrl-C is heard from the first import on."""
    try:
        from vlm_lens.cli import main as run

        return run()
    except KeyboardInterrupt:
        sys.stderr.write("vlm-lens: interrupted\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
