/*
 * Extension of the default extent hooks.
 *
 * Custom hooks would switch off batched purging, guards and more, so the bodies
 * of jemalloc's default hooks call these.
 */

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/jemalloc_internal_includes.h"

#include "jemalloc/internal/mesh_walk.h"

void
mesh_ehooks_alloc(void *addr, size_t size) {
	mesh_walk_note(addr, size);
	/*
	 * Where the kernel backs any memory with huge pages, to splice a slab out
	 * of one frees nothing.  Whoever asks for huge pages gets them all the
	 * same.
	 */
	if (have_madvise_huge && opt_thp == thp_mode_do_nothing
	    && init_system_thp_mode == system_thp_mode_always) {
		(void)pages_nohuge(addr, size);
	}
}

void
mesh_ehooks_assert_private(void *addr, size_t size) {
	for (byte_t *page = (byte_t *)addr; page < (byte_t *)addr + size;
	     page += PAGE) {
		/* Metadata are in no map.  The thread may have no tsd yet. */
		emap_full_alloc_ctx_t ctx;
		assert(emap_full_alloc_ctx_try_lookup(
		           TSDN_NULL, &arena_emap_global, page, &ctx)
		    || ctx.edata == NULL
		    || edata_mesh_role_get(ctx.edata) == edata_mesh_private);
	}
}
