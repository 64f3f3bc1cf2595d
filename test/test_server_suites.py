"""Valkey's own tests must pass with meshing as they do with stock jemalloc."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Those that change much memory, that fork under way, and active defragmentation;
# `./run suite` runs all.
FILES = ("unit/type/hash", "unit/type/list", "unit/type/stream", "unit/dump",
         "unit/aofrw", "unit/lazyfree", "integration/rdb", "integration/aof",
         "integration/block-repl", "unit/moduleapi/defrag")


def test_suite():
    suite = subprocess.run([ROOT / "scripts/server-suite", "valkey", "--fragment",
                            *FILES],
                           capture_output=True, text=True)
    print(suite.stdout, suite.stderr)
    assert suite.returncode == 0
