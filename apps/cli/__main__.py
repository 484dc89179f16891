"""``python -m apps.cli``: the same as ``tilth``."""

from apps.cli import main

if __name__ == "__main__":
    main()
