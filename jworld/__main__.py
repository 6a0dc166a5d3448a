"""python -m jworld: the console command without its installation."""

from jworld import cli

if __name__ == "__main__":
    cli.main()
