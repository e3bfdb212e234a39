"""Trains the embedded model: a small FLUX that draws simple scenes. Run `python -m training --help`."""
