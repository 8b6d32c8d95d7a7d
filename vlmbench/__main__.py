"""``python -m vlmbench`` and the console script ``vlmbench``."""

import sys

from vlmbench.errors import INTERRUPTED


def main() -> None:
    """Run the command line; who interrupts it while it is imported gets its exit status, too."""
    try:
        from vlmbench.cli.main import main as command_line
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    command_line()


if __name__ == "__main__":
    main()
