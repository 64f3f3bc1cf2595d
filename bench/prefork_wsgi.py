"""The application of prefork.py for gunicorn: a table of strings, filled and thinned
before the server forks; requests for /work replace some of them.
"""

import os
import random

FIRST = random.Random(1)


def value(rng):
    return bytes(500 + rng.randrange(900))


table = [value(FIRST) for _ in range(100_000)]
table = [each if FIRST.randrange(10) < 3 else None for each in table]
own = random.Random()


def work():
    for _ in range(50):
        table[own.randrange(len(table))] = None
    for _ in range(50):
        i = own.randrange(len(table))
        if own.randrange(10) < 3:
            table[i] = value(own)


def application(environ, start_response):
    if environ["PATH_INFO"] == "/work":
        work()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d\n" % os.getpid()]
