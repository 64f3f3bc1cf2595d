#ifndef JEMALLOC_INTERNAL_MESH_CODE_H
#define JEMALLOC_INTERNAL_MESH_CODE_H

#include "jemalloc/internal/jemalloc_preamble.h"

/* On x86-64 only. */

/* The size of an instruction that makes a call. */
#define MESH_CODE_CALL_BYTES 2

/* Whether the instruction before this program counter makes a system call. */
bool mesh_code_is_call(uintptr_t pc);

/*
 * The number of the call that has just returned to pc, with the stack at sp; -1 if it
 * cannot be had.
 */
long mesh_code_number(uintptr_t pc, uintptr_t sp);

#endif /* JEMALLOC_INTERNAL_MESH_CODE_H */
