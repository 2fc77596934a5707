"""Side by side with the peers: `make benchmark`, or `python -m benchmarks --help`."""
