#ifndef JEMALLOC_INTERNAL_MESH_FRAME_H
#define JEMALLOC_INTERNAL_MESH_FRAME_H

#include "jemalloc/internal/jemalloc_preamble.h"

#include <ucontext.h>

/*
 * For a handler with SA_ONSTACK, first of all: runs the rest of it where it can be
 * interrupted by other handlers, and returns from the signal if that is elsewhere.
 * caller is where the handler returns to.
 */
void mesh_frame_run(
    ucontext_t *context, const void *caller, void (*run)(ucontext_t *context));

/*
 * On x86-64 only.  From a stack pointer down to the registers in the frame that a
 * signal puts there, or at most 56 bytes further, and where they are if it is the first
 * one on the thread's alternate stack, NULL if that has none.  context is the frame of
 * another signal.
 */
size_t    mesh_frame_size(const ucontext_t *context);
uint64_t *mesh_frame_alt(const ucontext_t *context);

#endif /* JEMALLOC_INTERNAL_MESH_FRAME_H */
