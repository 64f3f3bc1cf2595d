#ifndef JEMALLOC_INTERNAL_MESH_QUOTA_H
#define JEMALLOC_INTERNAL_MESH_QUOTA_H

#include "jemalloc/internal/jemalloc_preamble.h"

/* Of one processor. */
#define MESH_QUOTA_UNIT 1000
#define MESH_QUOTA_NONE UINT_MAX

/*
 * Reads how much of the processors the process may use.  It opens files for a moment, as
 * mesh_settle() does.  The mesh lock is held.
 */
void mesh_quota_look(void);

/* What it was then, in MESH_QUOTA_UNIT, or MESH_QUOTA_NONE.  The mesh lock is held. */
unsigned mesh_quota_get(void);

#endif /* JEMALLOC_INTERNAL_MESH_QUOTA_H */
