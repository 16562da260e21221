"""What a script does before its slow imports: to be imported first, because OpenMP reads its settings with torch.

OpenMP's threads wait for each other without spinning. Spinning threads take the cores from the other programs of a
machine, which then slow down the training most of all. A value in the environment stays.

Ctrl-C ends a script in silence, with status 130, wherever in the imports it is. Then `utils.run` takes over.
"""

import os
import signal
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_main = getattr(sys.modules["__main__"], "__file__", None) or ""
# Not in a notebook, a test or another program that imports a script: there, Ctrl-C is theirs. `nohup` ignores it.
if (
    os.path.dirname(os.path.abspath(_main)) == os.path.dirname(os.path.abspath(__file__))
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    # Not by an exception: libraries catch some while they load, and nothing is there yet to be tidied up.
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))
