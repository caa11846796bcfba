"""The command line as ``python -m vitreous``."""

from vitreous.cli.main import run

if __name__ == "__main__":
    run()
