"""How fast the study's own computations are. Run `make bench`, or `python -m benchmarks --help`."""
