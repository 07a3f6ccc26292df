"""``python -m cxrlt_cli`` is ``cxrlt``; ``torchrun -m cxrlt_cli train ...`` starts here."""

from cxrlt_cli.cli import main

if __name__ == "__main__":
    main()
