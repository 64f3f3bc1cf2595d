#!/usr/bin/python3
"""The price of meshing in speed: jemalloc with meshing off (the default) and on
against its stock twin, in instructions (exact) and, as other mallocs too, in
throughput (noisy).
"""

import argparse
import json
import re
import shutil
import statistics
import subprocess

import common

PROGRAM = common.OUT / "speed"
JEMALLOCS = ("stock", "mesh off", "mesh")

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
    ("mixed", 1, 8_000_000, 14 << 10),
    ("mixed", 2, 5_000_000, 14 << 10),
    ("pipe", 2, 10_000_000, 64),
)
GOAL_PERCENT = 0.5
# Geometric mean of the throughput ratios, and the least of them.
GOALS = {"mesh off": (0.995, 0), "mesh": (0.99, 0.95)}


def run(malloc, case, *prefix):
    """Runs a case on a malloc; returns what the program reports."""
    end = subprocess.run([*prefix, PROGRAM, *map(str, case)], text=True,
                         capture_output=True, env=malloc.environment())
    if end.returncode:
        common.fail(f"{' '.join(map(str, case))} ends with status "
                    f"{end.returncode} on {malloc.path}: {end.stderr}")
    report = json.loads(end.stdout)
    malloc.check(report["library"])
    return report


def instructions(malloc, case):
    """Instructions of an operation, and the program's report."""
    counts = PROGRAM.with_suffix(".callgrind")
    report = run(malloc, case, "valgrind", "--tool=callgrind",
                 f"--callgrind-out-file={counts}", "--collect-atstart=no",
                 "--toggle-collect=measured")
    total = int(re.search(r"^totals: (\d+)", counts.read_text(), re.M)[1])
    counts.unlink()
    return total / case[2], report


def identify(variants):
    """Prints which mallocs these are."""
    reports = {name: run(malloc, ("local", 1, 1, 16))
               for name, malloc in variants.items()}
    for name, report in reports.items():
        print(f"{name}: {report['library']}"
              + (f", version {report['version']}" if report["version"] else "")
              + (f", config.mesh {report['config_mesh']}, opt.mesh "
                 f"{report['opt_mesh']}" if "mesh" in name else "")
              + (f", {report['mesh_off']}" if report["mesh_off"] else ""))
    print(flush=True)
    return reports


def label(case):
    pattern, threads, _, size = case
    size = f"up to {size}" if pattern in ("larson", "mixed") else size
    return f"{pattern}, {size} B" + (f", {threads} threads" if threads > 1
                                     else "")


def count(variants):
    """Instructions of an operation, by case and variant."""
    if not shutil.which("valgrind"):
        common.fail("valgrind is missing; install it, or give "
                    "--kind throughput.")
    results, rows, off = [], [], ""
    for case in INSTRUCTIONS:
        figures = {}
        for name in JEMALLOCS:
            figures[name], report = instructions(variants[name], case)
            off = off or report["mesh_off"] if name == "mesh" else off
        results.append({"case": case, "instructions": figures})
        stock = figures["stock"]
        rows.append((label(case), f"{stock:.2f}",
                     *(text for name in JEMALLOCS[1:] for text in
                       (f"{figures[name]:.2f}",
                        f"{(figures[name] / stock - 1) * 100:+.2f} %"))))
    common.table(("instructions a malloc + free", "stock", "mesh off", "",
                  "mesh", ""), rows)
    worst = max(r["instructions"]["mesh off"] / r["instructions"]["stock"] - 1
                for r in results) * 100
    print(f"\nmesh off costs {worst:+.2f} % at most; the goal of "
          f"{GOAL_PERCENT} % is "
          f"{'met' if worst <= GOAL_PERCENT else 'MISSED'}.")
    if off:
        print(f"mesh was off under valgrind: {off}")
    print(flush=True)
    return results


def clock(variants, nruns):
    """Operations a second, by case, variant and run."""
    runs = {case: {name: [] for name in variants} for case in THROUGHPUT}
    for i in range(nruns):
        print(f"run {i + 1} of {nruns}", flush=True)
        for case, figures in runs.items():
            for name in variants:
                seconds = run(variants[name], case)["seconds"]
                # pipe shares each operation between its two threads.
                threads = 1 if case[0] == "pipe" else case[1]
                figures[name].append({"rate": case[2] * threads / seconds})
            # Everyone goes first in turn.
            first, *others = variants
            variants = {name: variants[name] for name in (*others, first)}
    results, rows = [], []
    others = [name for name in runs[THROUGHPUT[0]] if name != "stock"]
    for case, figures in runs.items():
        result = common.against_stock(figures)
        ratios = {name: result["ratios"][name]["rate"] for name in others}
        stock = result["medians"]["stock"]["rate"]
        results.append({"case": case, "ratios": ratios, "runs": figures})
        rows.append((label(case), f"{stock / 1e6:.1f}",
                     *(f"{ratios[name]:.3f}" for name in others)))
    means, least = ({name: function(each["ratios"][name] for each in results)
                     for name in others}
                    for function in (statistics.geometric_mean, min))
    rows += [("geometric mean", "", *(f"{means[name]:.3f}" for name in others)),
             ("least", "", *(f"{least[name]:.3f}" for name in others))]
    print()
    common.table((f"throughput, median of {nruns}", "stock 10^6/s",
                  *others), rows)
    print()
    for name, (goal, goal_least) in GOALS.items():
        good = means[name] >= goal and least[name] >= goal_least
        print(f"{name}: mean {means[name]:.3f}, least {least[name]:.3f}; the goal "
              f"of {goal} and {goal_least} is {'met' if good else 'MISSED'}.")
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    common.add_arguments(parser, runs=7)
    common.add_only(parser)
    parser.add_argument("--kind", choices=("instructions", "throughput"),
                        help="default both")
    args = parser.parse_args()
    args.only = [*JEMALLOCS, *(args.only or common.peers())]
    variants = common.mallocs(args)
    common.compile_program("speed", common.HERE / "report.c",
                           flags=("-fno-builtin",))

    results = {"mallocs": identify(variants)}
    if args.kind != "throughput":
        results["instructions"] = count(variants)
    if args.kind != "instructions":
        results["throughput"] = clock(variants, args.runs)
    path = PROGRAM.with_suffix(".json")
    common.save(path, results)
    print(f"all figures: {path}")


if __name__ == "__main__":
    main()
