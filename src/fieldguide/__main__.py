"""`python -m fieldguide` is the same as the `fieldguide` command."""

from fieldguide.cli import main

if __name__ == "__main__":
    main()
