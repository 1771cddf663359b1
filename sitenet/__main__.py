"""``python -m sitenet``: the command line, also under torchrun."""

from sitenet.cli.app import main

if __name__ == "__main__":
    main()
