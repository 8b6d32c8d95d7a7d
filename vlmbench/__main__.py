"""``python -m vlmbench`` and the console script ``vlmbench``."""

from vlmbench.cli.main import main

if __name__ == "__main__":
    main()
