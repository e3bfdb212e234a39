"""Makes a folder with 4-bit weights from one with plain weights. Needs requirements/quantize.txt."""
