"""Runs a command that the kernel refuses a system call, as container engines do.

usage: seccomp.py NUMBER ERRNO COMMAND...
"""

import ctypes
import errno
import os
import struct
import sys

PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # BPF
ALLOW, FAIL_WITH = 0x7fff0000, 0x00050000


def main(number, name, *command):
    program = b"".join(struct.pack("=HBBI", *each) for each in (
        (LOAD, 0, 0, 0),  # the number of the system call
        (JUMP_IF_EQUAL, 0, 1, int(number)),
        (RETURN, 0, 0, FAIL_WITH | getattr(errno, name)),
        (RETURN, 0, 0, ALLOW)))
    buffer = ctypes.create_string_buffer(program)
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
