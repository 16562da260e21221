"""OpenMP's threads wait for each other without spinning. To be imported before torch, which reads this when it loads.

Spinning threads take the cores from the other programs of a machine, which then slow down the training most of all.
A value in the environment stays.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
