"""One file for each benchmark, and how times are taken. benchmark.py runs them."""
