#!/usr/bin/python3
"""How long malloc, free and a plain write take at most while a heap is meshed: two
threads replace and write objects all the time, each operation clocked.
"""

import argparse

import common

OPERATIONS = ("malloc", "free", "write", "nothing")
KINDS = (  # key, label, format
    ("max_us", "longest (us)", "{:,.0f}"),
    ("waited_us", "  not preempted (us)", "{:,.0f}"),
    ("long", "  of these > 1 ms", "{:,.0f}"),
    ("9999_us", "99.99 % (us)", "{:.2f}"),
    ("median_us", "half (us)", "{:.3f}"),
    ("count", "number", "{:,.0f}"),
)
GOAL_US, GOAL_RATIO = 1000, 1.2


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    common.add_arguments(parser, runs=3)
    common.add_only(parser)
    parser.add_argument("--slabs", type=int, default=1_000_000,
                        help="pages of objects before the frees (default "
                        "%(default)s)")
    parser.add_argument("--size", type=int, default=256,
                        help="of the objects (default %(default)s)")
    parser.add_argument("--freed", type=int, default=80,
                        help="per cent of them (default %(default)s)")
    parser.add_argument("--seconds", type=int, default=30,
                        help="to measure (default %(default)s)")
    parser.add_argument("--max-map-count", type=int, metavar="N",
                        help="vm.max_map_count meanwhile")
    args = parser.parse_args()
    mallocs = common.mallocs(args, "background_thread:true")
    program = common.compile_program("pause", common.HERE / "report.c",
                                     common.TEST / "measure.c")
    runs = {name: [] for name in mallocs}
    with common.max_map_count(args.max_map_count):
        for i, name in enumerate(common.turns(mallocs, args.runs)):
            # One processor each is all that the two threads have: no samples.
            phases, _ = common.watch(mallocs[name], [
                program, args.slabs, args.size, args.freed, args.seconds,
                1 + i // len(mallocs)], period=args.seconds + 3600)
            runs[name].append(phases["measured"])
            print(f" {phases['measured']['write_max_us']:,.0f} us", flush=True)

    result = common.against_stock(runs)
    print(f"\n{args.slabs:,} slabs of {args.size} B, {args.freed} % freed, "
          f"{args.seconds} s, median of {args.runs}")
    for operation in OPERATIONS:
        common.variant_table(operation, result, [
            (f"{operation}_{key}", label.strip(), form, key.endswith("us"))
            for key, label, form in KINDS])
    common.variant_table("", result, (
        ("nmeshes", "slabs meshed", "{:,.0f}", False),
        ("memory", "memory MB", "{:,.0f}", True)))
    if "mesh" in runs:
        judge(result)
    path = common.OUT / "pause.json"
    common.save(path, result)
    print(f"all figures: {path}")


def judge(result):
    """Says whether mesh waits longer than wanted."""
    for operation in OPERATIONS[:3]:
        key = f"{operation}_max_us"
        longest, quotient = (result[part]["mesh"][key]
                             for part in ("medians", "ratios"))
        good = longest <= GOAL_US or quotient <= GOAL_RATIO
        print(f"{operation}: {longest:,.0f} us, {quotient:.2f} x stock "
              f"({'as' if good else 'NOT as'} wanted: {GOAL_US:,} us or "
              f"{GOAL_RATIO} x)")


if __name__ == "__main__":
    main()
