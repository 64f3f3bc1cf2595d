"""Scripts that wait while they free memory, in the ordinary interpreters.

Each script of interpreters/ fragments the heap before each of its waits, and prints
how long that was to take and how long it took.  Those of Perl, Python and Ruby have
a second thread that does so all the time.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from conftest import LIBS, TEST

CONF = "abort_conf:true,mesh:true,mesh_period_ms:0,mesh_barrier:signal"
# What the interpreters allocate by themselves they shall take from malloc().
ENV = {"PYTHONMALLOC": "malloc", "USE_ZEND_ALLOC": "0"}
# PHP binds its extensions to the C library's malloc(), with stock jemalloc, too.
COMMANDS = [("/usr/bin/perl", "pl"), ("/usr/bin/python3", "py"), ("ruby", "rb"),
            ("bash", "sh"), ("php -n", "php"), ("lua5.4", "lua")]
# As an ordinary user.
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
          "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]
# A busy machine lets all of them wait longer.
LATE_S = 2


@pytest.fixture(scope="module")
def directory(preload):
    """All that the scripts need, where anybody may read, and write the tally."""
    with tempfile.TemporaryDirectory() as path:
        library = preload("tally")[1].removeprefix("LD_PRELOAD=")
        shutil.copy(library, path)
        shutil.copy(LIBS["release"] / "libjemalloc.so.2", path)
        shutil.copytree(TEST / "interpreters", path, dirs_exist_ok=True)
        os.chmod(path, 0o777)
        yield Path(path)


@pytest.mark.parametrize("command, script", COMMANDS, ids=[c[1] for c in COMMANDS])
def test_waits_last(directory, command, script):
    """Nothing ends early or late, and what the script's signals end ends then."""
    tally = directory / f"tally.{script}"
    run = subprocess.run(
        [*NOBODY, *command.split(), directory / f"waits.{script}"],
        env=os.environ | ENV | {
            "TALLY": str(tally), "MALLOC_CONF": CONF,
            "LD_PRELOAD": f"{directory}/tally.so {directory}/libjemalloc.so.2"},
        capture_output=True, text=True, timeout=100)
    assert run.returncode == 0 and run.stderr == "", run
    lines = [line.split() for line in run.stdout.splitlines()]
    assert len(lines) >= 3, run
    for _, wanted, took in lines:
        assert float(wanted) - 0.005 <= float(took) < float(wanted) + LATE_S, run
    assert sum(map(int, tally.read_text().split())) > 0, run
