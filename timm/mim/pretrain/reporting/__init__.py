"""What a run says and writes down: lines, numbers, curves, pictures, pages."""
