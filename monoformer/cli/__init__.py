"""The command line: `monoformer COMMAND ...`, one module a group of commands."""

import os

# Before torch is loaded: OpenMP threads that wait actively make a step take 10 times as long, not twice, as soon as any
# other program wants a core (measured: 9.3 against 1.3 s beside one busy process, 0.55 s alone).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from monoformer.cli.main import main as main
