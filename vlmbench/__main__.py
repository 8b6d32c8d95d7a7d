"""``python -m vlmbench`` and the console script ``vlmbench``."""

from vlmbench.session.signals import end_on_signals, end_process


def main() -> None:
    """Run the command line; who interrupts it while it is imported gets its exit status, too."""
    end_on_signals()
    from vlmbench.cli.main import main as command_line

    try:
        command_line()
    except SystemExit as end:
        end_process(end.code)


if __name__ == "__main__":
    main()
