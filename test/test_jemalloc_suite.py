"""jemalloc's own unit and integration tests, patched, with meshing off and on."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# What jemalloc 5.3.1 has by itself: 112 unit programs, and 17 for integration
# that run with each of three decay times.
PROGRAMS = {"unit": 112, "integration": 51}


@pytest.mark.parametrize("mode", ["off", "mesh"])
@pytest.mark.parametrize("variant", ["release", "debug"])
def test_suite(variant, mode):
    suite = subprocess.run([ROOT / "scripts/jemalloc-suite", variant, mode],
                           capture_output=True, text=True)
    print(suite.stdout, suite.stderr)
    assert suite.returncode == 0
    for kind, programs in PROGRAMS.items():
        passed, skipped, failed = map(int, re.search(
            rf"^{kind} (\d+) pass, (\d+) skip, (\d+) fail$", suite.stdout, re.M).groups())
        assert failed == 0
        assert passed + skipped >= programs
