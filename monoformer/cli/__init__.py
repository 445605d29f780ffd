"""The command line: `monoformer COMMAND ...`, one module a group of commands."""

import os

# Before torch is loaded: OpenMP threads that wait actively for long make a step take 10 times as long, not twice, as
# soon as any other program wants a core (measured on two: 9.3 s beside one busy process, 1.3 s when they sleep; alone
# 0.70 s either way with this count, 0.80 s when they never spin).
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from monoformer.cli.main import main as main
