#!/usr/bin/python3
"""The price of meshing in speed: jemalloc with meshing off (the default) and on
against its stock twin, in instructions (exact) and in throughput (noisy).
"""

import argparse
import json
import re
import shutil
import subprocess
from pathlib import Path

import common

SOURCE = Path(__file__).resolve().parent / "speed.c"
PROGRAM = common.BUILD / "bench/speed"
COMPILE = ("-std=gnu11", "-O2", "-fno-builtin", "-pthread")

# (pattern, threads, operations, size).  Instructions are counted in one thread;
# few operations do, since the count is nearly the same each time.
INSTRUCTIONS = (
    ("local", 1, 200_000, 16),
    ("local", 1, 200_000, 256),
    ("local", 1, 200_000, 4096),
    ("flush", 1, 204_800, 16),
    ("flush", 1, 204_800, 256),
    ("flush", 1, 51_200, 2048),
)
THROUGHPUT = (
    ("local", 1, 60_000_000, 64),
    ("local", 2, 40_000_000, 64),
    ("flush", 1, 15_000_000, 64),
    ("flush", 2, 10_000_000, 64),
    ("larson", 1, 15_000_000, 1024),
    ("larson", 2, 10_000_000, 1024),
    ("pipe", 2, 10_000_000, 64),
)
GOAL_PERCENT = 0.5


class Variant:
    """A jemalloc with its options."""

    def __init__(self, libdir, conf):
        self.library, self.conf = common.library(libdir), conf

    def run(self, case, *prefix):
        """Runs a case on this malloc; returns what the program reports."""
        env = common.environment(LD_PRELOAD=str(self.library),
                                 MALLOC_CONF=self.conf)
        end = subprocess.run(
            [*prefix, PROGRAM, *map(str, case)], capture_output=True,
            text=True, env=env)
        if end.returncode:
            common.fail(f"{' '.join(map(str, case))} ends with status "
                        f"{end.returncode} on {self.library}: {end.stderr}")
        report = json.loads(end.stdout)
        if report["library"] != str(self.library):
            common.fail(f"the program ran on {report['library']} instead of "
                        f"{self.library}.")
        return report

    def instructions(self, case):
        """Instructions of an operation, and the program's report."""
        counts = PROGRAM.with_suffix(".callgrind")
        report = self.run(case, "valgrind", "--tool=callgrind",
                          f"--callgrind-out-file={counts}",
                          "--collect-atstart=no", "--toggle-collect=measured")
        total = int(re.search(r"^totals: (\d+)", counts.read_text(), re.M)[1])
        counts.unlink()
        return total / case[2], report


def identify(variants):
    """Prints which mallocs these are."""
    reports = {name: variant.run(("local", 1, 1, 16))
               for name, variant in variants.items()}
    for name, report in reports.items():
        print(f"{name}: {report['library']}, version {report['version']}, "
              f"config.mesh {report['config_mesh']}, "
              f"opt.mesh {report['opt_mesh']}"
              + (f", {report['mesh_off']}" if report["mesh_off"] else ""))
    print(flush=True)
    return reports


def label(case):
    pattern, threads, _, size = case
    size = f"up to {size}" if pattern == "larson" else size
    return f"{pattern}, {size} B" + (f", {threads} threads" if threads > 1
                                     else "")


def count(variants):
    """Instructions of an operation, by case and variant."""
    if not shutil.which("valgrind"):
        common.fail("valgrind is missing; install it, or give "
                    "--only throughput.")
    results, rows, off = [], [], ""
    for case in INSTRUCTIONS:
        figures = {}
        for name, variant in variants.items():
            figures[name], report = variant.instructions(case)
            off = off or report["mesh_off"] if name == "mesh on" else off
        results.append({"case": case, "instructions": figures})
        stock = figures["stock"]
        rows.append((label(case), f"{stock:.2f}",
                     *(text for name in ("mesh off", "mesh on") for text in
                       (f"{figures[name]:.2f}",
                        f"{(figures[name] / stock - 1) * 100:+.2f} %"))))
    common.table(("instructions a malloc + free", "stock", "mesh off", "",
                  "mesh on", ""), rows)
    worst = max(r["instructions"]["mesh off"] / r["instructions"]["stock"] - 1
                for r in results) * 100
    print(f"\nmesh off costs {worst:+.2f} % at most; the goal of "
          f"{GOAL_PERCENT} % is "
          f"{'met' if worst <= GOAL_PERCENT else 'MISSED'}.")
    if off:
        print(f"mesh on was off under valgrind: {off}")
    print(flush=True)
    return results


def clock(variants, nruns):
    """Operations a second, by case, variant and run."""
    runs = {case: {name: [] for name in variants} for case in THROUGHPUT}
    names = list(variants)
    for i in range(nruns):
        print(f"run {i + 1} of {nruns}", flush=True)
        for case, figures in runs.items():
            for name in names:
                seconds = variants[name].run(case)["seconds"]
                # pipe shares each operation between its two threads.
                threads = 1 if case[0] == "pipe" else case[1]
                figures[name].append({"rate": case[2] * threads / seconds})
            names = names[1:] + names[:1]  # everyone goes first in turn
    results, rows = [], []
    for case, figures in runs.items():
        medians = {name: common.medians(figure)["rate"]
                   for name, figure in figures.items()}
        ratios = {name: common.ratio(figures["stock"], figure, "rate")
                  for name, figure in figures.items() if name != "stock"}
        results.append({"case": case, "medians": medians, "ratios": ratios,
                        "runs": figures})
        rows.append((label(case), f"{medians['stock'] / 1e6:.1f}",
                     *(text for name, ratio in ratios.items() for text in
                       (f"{medians[name] / 1e6:.1f}", f"{ratio:.3f}"))))
    print()
    common.table((f"10^6 operations/s, median of {nruns}", "stock", "mesh off",
                  "ratio", "mesh on", "ratio"), rows)
    print(flush=True)
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7,
                        help="throughput runs (default %(default)s)")
    parser.add_argument("--only", choices=("instructions", "throughput"))
    parser.add_argument("--stock-lib", default=common.BUILD / "stock/lib",
                        help="directory of the stock libjemalloc.so.2")
    parser.add_argument("--mesh-lib", default=common.BUILD / "lib",
                        help="directory of the libjemalloc.so.2 that meshes")
    args = parser.parse_args()
    variants = {"stock": Variant(args.stock_lib, ""),
                "mesh off": Variant(args.mesh_lib, ""),
                "mesh on": Variant(args.mesh_lib, "mesh:true")}
    PROGRAM.parent.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(["cc", *COMPILE, SOURCE, "-o", PROGRAM], check=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        common.fail(f"speed.c cannot be compiled: {error}")

    results = {"mallocs": identify(variants)}
    if args.only != "throughput":
        results["instructions"] = count(variants)
    if args.only != "instructions":
        results["throughput"] = clock(variants, args.runs)
    path = PROGRAM.with_suffix(".json")
    common.save(path, results)
    print(f"all figures: {path}")


if __name__ == "__main__":
    main()
