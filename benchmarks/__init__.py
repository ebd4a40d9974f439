"""Side-by-side measurements. `python -m benchmarks` runs them all; each file has one subject and a function `rows`."""
