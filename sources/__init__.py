"""Public archives -> folders that train.py reads, and the check of such folders. prepare.py runs them."""
