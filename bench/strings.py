#!/usr/bin/python3
"""The Ruby pattern of the Mesh paper, in C and in Ruby: 128 MB of strings, of which
a quarter is kept at random, again and again with strings twice as long.
"""

import argparse

import common
from common import MB

COLUMNS = (  # key, heading, format, with ratio to stock
    ("mean", "mean MB", "{:,.1f}", True),
    ("final", "final MB", "{:,.1f}", True),
    ("cgroup", "by cgroup", "{:,.1f}", False),
    ("peak", "peak MB", "{:,.1f}", True),
    ("live", "live MB", "{:,.0f}", False),
    ("mappings", "mappings", "{:,.0f}", False),
    ("cpu_s", "CPU s", "{:.2f}", True),
)


def figures(phases, curve):
    begin, full, *_, last = phases.values()
    result = {"mean": common.mean_over_time(curve, full["at"]),
              "final": last["memory"],
              "peak": max(memory for _, memory in curve),
              "live": last["live"] / MB, "mappings": last["mappings"],
              "cpu_s": last["cpu_s"] - begin["cpu_s"],
              "mesh_off": last.get("mesh_off")}
    if "cgroup_pages" in last:
        result["cgroup"] = last["cgroup_pages"]
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    common.add_arguments(parser, runs=3)
    common.add_only(parser)
    parser.add_argument("--mb", type=int, default=128,
                        help="size of all strings (default %(default)s)")
    parser.add_argument("--first", type=int, default=64,
                        help="their length in the first round, with the "
                        "terminator (default %(default)s)")
    parser.add_argument("--last", type=int, default=8192,
                        help="and in the last one (default %(default)s)")
    parser.add_argument("--idle", type=int, default=2, metavar="SECONDS",
                        help="after each round, and ten times that after the "
                        "last (default %(default)s)")
    parser.add_argument("--language", nargs="+", default=["C", "Ruby"],
                        choices=("C", "Ruby"), help="default both")
    args = parser.parse_args()
    mallocs = common.mallocs(args, "background_thread:true")
    programs = {
        "C": [common.compile_program("strings", common.HERE / "report.c")],
        "Ruby": ["ruby", common.HERE / "strings.rb"]}

    results = {}
    for language in args.language:
        title = f"{args.mb} MB of strings, {language}"
        print(title, flush=True)
        runs = {name: [] for name in mallocs}
        curves = {name: [] for name in mallocs}
        marks = {name: [] for name in mallocs}
        for i, name in enumerate(common.turns(mallocs, args.runs)):
            phases, curve = common.watch(mallocs[name], [
                *programs[language], args.mb * MB, args.first, args.last,
                args.idle, 1 + i // len(mallocs)])
            runs[name].append(figures(phases, curve))
            curves[name].append(curve)
            marks[name].append([phase["at"] for each, phase in phases.items()
                                if each.startswith("filled")])
            print(f" {runs[name][-1]['final']:.1f} MB", flush=True)
        result = common.against_stock(runs)
        common.variant_table(title, result, COLUMNS)
        image = common.OUT / f"strings-{language}.png"
        common.draw(image, f"{title}, a quarter kept at random each round",
                    curves, marks, "filled")
        print(f"memory over time: {image}\n", flush=True)
        results[language] = {"curves": curves, **result}
    path = common.OUT / "strings.json"
    common.save(path, results)
    print(f"all figures: {path}")


if __name__ == "__main__":
    main()
