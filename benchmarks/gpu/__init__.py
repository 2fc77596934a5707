"""What can only be known on a GPU: `python -m benchmarks.gpu --help`."""
