#ifndef MESH_TEST_PLACES_H
#define MESH_TEST_PLACES_H

/*
 * Objects of a scenario that lie in slabs with little else, so that they mesh.
 */

#include "scenario.h"

#define NPLACES 64
#define PAGE ((size_t)4096)

extern unsigned char *places[NPLACES];

/*
 * Allocates zeroed places of a size from "heap", "manual", which is a manual
 * arena, or "aligned", which are page-aligned objects.
 */
void places_alloc(const char *where, size_t size);
/* Meshes, and counts the places that moved. */
void places_mesh(size_t size);

#endif /* MESH_TEST_PLACES_H */
