"""``python -m pocketgan``."""

from pocketgan.cli import main

main()
