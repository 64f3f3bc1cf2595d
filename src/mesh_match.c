/*
 * Which slabs can share memory.
 *
 * The problem
 *
 * Slabs of one size class can share one physical slab if no region is live in
 * two of them.  Given the bitmaps of n slabs, find few groups of slabs with
 * pairwise disjoint bitmaps, so that each slab is in one group: n less the
 * number of groups is the number of slabs that meshing releases.  The fewest
 * groups are a minimum clique cover, which is NP-hard; this is a heuristic.
 *
 * The algorithm
 *
 * First-fit decreasing, as known from bin packing.  The slabs are taken by
 * number of live regions, most first, ties by index; each joins the first group
 * in order of creation whose union has none of its regions live, and starts a
 * new group if there is none.  A full group takes no more, not even an empty
 * slab.  It replaces SplitMesher of Mesh (Powers et al., PLDI 2019), which
 * makes pairs by testing 64 random partners for each slab.  Share of 10,000
 * random slabs released, by regions a slab and the chance that one is live:
 *
 *	                       8 regions        16          32          64
 *	                      .1  .3  .5    .1  .3  .5  .1  .3  .5  .1  .3  .5
 *	SplitMesher, 10 times .76 .57 .33  .80 .51 .18  .79 .40 .02 .73 .16 .00
 *	here                  .82 .68 .48  .87 .69 .37  .89 .60 .07 .88 .41 .00
 *
 * First-fit is also what makes it fast, since "the first group" is "the lowest
 * zero bit" in the index below.  Trying the newest group first was up to four
 * percent worse.
 *
 * The index
 *
 * The unions of the groups are kept by region, not by group: for each block of
 * 512 groups one line of 512 bits for each region, bit g saying that group g of
 * the block has the region live, and one line more saying that it is full.  To
 * place a slab, the lines of its live regions are ORed; the lowest bit that is
 * still zero is the answer for 512 groups.  Mostly no zero is left after a few
 * lines, and the rest of the block need not be read: with unions two thirds
 * full, about six lines rule out 512 groups, whatever the number of regions.
 *
 * Groups that do not exist yet have all bits zero, so that a search ends with a
 * new group by itself; a block's lines are cleared when a search first gets
 * there.
 *
 * Hints spare slabs with the same bitmap the same search: groups only get
 * fuller, so the second one may start at the block where the first one was
 * placed.  They are found by a hash of the bitmap, n entries without chains; a
 * lost hint costs time, not quality.  With few regions, hence few different
 * bitmaps, they make the search sublinear: a million slabs of 8 regions take
 * 0.06 s with them and 3 s without.
 *
 * The slabs are put in order by counting sort into order[], which is stable.
 * Each group is a ring of slabs through next[], in order of placement; last[]
 * has one word a group, its last slab, whose successor is the first one.
 *
 * The cost
 *
 * Time is O(n) for the sort and at worst O(n * groups * live / 512) lines for
 * the placing.  Measured with gcc 12 -O3 for plain x86-64, in milliseconds:
 *
 *	regions          16      16      16       16      64      64     512
 *	live             .1      .3      .5       .4      .1      .3      .1
 *	slabs        20,000  20,000  20,000  1000000  100000  100000  20,000
 *	time            0.8     1.7     3.6      490      25     160      18
 *
 * All of it is cut into slices: mesh_match_step() stops between two slabs while
 * sorting and between two blocks while placing.  Memory is 22 + nregs / 8 bytes
 * a slab, of which the unions take the part that depends on nregs.
 */

/* In jemalloc's tree, its private namespace applies to these symbols too. */
#if __has_include("jemalloc/internal/jemalloc_preamble.h")
#	include "jemalloc/internal/jemalloc_preamble.h"
#	include "jemalloc/internal/mesh_match.h"
#else
#	include "mesh_match.h"
#endif

/* Groups in a block: the bits of a line, which is one cache line. */
#define BLOCK_LG 9
#define BLOCK_NGROUPS ((size_t)1 << BLOCK_LG)
#define LINE_NWORDS (BLOCK_NGROUPS / 64)
/* Lines taken at a time, between two looks whether a group is left. */
#define STRIDE 4

typedef struct match_line_s match_line_t;
struct match_line_s {
	/* Bit g is set if group g of the block has the line's region live. */
	uint64_t w[LINE_NWORDS];
};

typedef struct match_hint_s match_hint_t;
struct match_hint_s {
	/* The slab of this hash that was placed last, MESH_MATCH_END if none. */
	uint32_t slab;
	/* The block of the group that took it. */
	uint32_t block;
};

typedef enum {
	/* Count the slabs of each number of live regions; clear the hints. */
	match_phase_count,
	/* List them by that number. */
	match_phase_sort,
	/* Put one after the other into a group. */
	match_phase_place,
	match_phase_done
} match_phase_t;

struct mesh_match_s {
	/* The caller's bitmaps, nwords words for each of the n slabs. */
	const uint64_t *live;
	unsigned        nregs;
	unsigned        nwords;
	uint32_t        n;

	match_phase_t phase;
	/* Slabs that the phase has dealt with. */
	uint32_t cursor;

	/* order[k] is the index of the k-th slab to be placed. */
	uint32_t *order;
	/*
	 * Of each slab, the next one of its group; of the last one, the first:
	 * a ring, so that one word a group gives both of its ends.
	 */
	uint32_t *next;
	/* Of each group, the last slab. */
	uint32_t *last;
	/*
	 * n hints by hash of the bitmap: a slab with the same bitmap need not
	 * look into earlier blocks, since groups only get fuller.
	 */
	match_hint_t *hints;
	/* Of each group, the number of live regions of all its slabs. */
	uint16_t *nlive;
	/*
	 * The unions, nlines lines a block: line r of block b says which of the
	 * groups [b * BLOCK_NGROUPS, (b + 1) * BLOCK_NGROUPS) have region r
	 * live.  The line behind the regions says which groups are full.
	 */
	match_line_t *lines;
	size_t        nlines;
	/* Groups that exist, and blocks whose lines have been cleared. */
	uint32_t ngroups;
	uint32_t nblocks;

	/*
	 * The slab being placed: the lines it needs a zero in, the last one
	 * repeated to make their number a multiple of STRIDE; how many regions
	 * it has live; its hint; and the block to look into next.  nrows is 0
	 * while there is no such slab.
	 */
	uint16_t      row[MESH_MATCH_NREGS_MAX + STRIDE];
	unsigned      nrows;
	unsigned      nrows_live;
	match_hint_t *hint;
	uint32_t      block;

	/*
	 * While counting, the number of slabs with so many live regions; then
	 * the place in order[] of the next one of them.
	 */
	uint32_t place[MESH_MATCH_NREGS_MAX + 1];
};

static size_t
match_round_up(size_t size) {
	return (size + sizeof(match_line_t) - 1) & ~(sizeof(match_line_t) - 1);
}

static size_t
match_nblocks_max(size_t n) {
	return (n + BLOCK_NGROUPS - 1) >> BLOCK_LG;
}

size_t
mesh_match_size(unsigned nregs, size_t n) {
	return match_round_up(sizeof(mesh_match_t))
	    + match_nblocks_max(n) * (nregs + 1) * sizeof(match_line_t)
	    + match_round_up(n
	        * (3 * sizeof(uint32_t) + sizeof(match_hint_t)
	            + sizeof(uint16_t)));
}

mesh_match_t *
mesh_match_begin(
    void *scratch, unsigned nregs, size_t n, const uint64_t *live) {
	mesh_match_t *m = (mesh_match_t *)scratch;

	m->live = live;
	m->nregs = nregs;
	m->nwords = (nregs + 63) / 64;
	m->n = (uint32_t)n;
	m->phase = match_phase_count;
	m->cursor = 0;
	m->lines = (match_line_t *)(void *)((char *)scratch
	    + match_round_up(sizeof(mesh_match_t)));
	m->nlines = nregs + 1;
	m->order = (uint32_t *)(m->lines + match_nblocks_max(n) * m->nlines);
	m->next = m->order + n;
	m->last = m->next + n;
	m->hints = (match_hint_t *)(m->last + n);
	m->nlive = (uint16_t *)(m->hints + n);
	m->ngroups = 0;
	m->nblocks = 0;
	m->nrows = 0;
	for (unsigned r = 0; r <= nregs; r++) {
		m->place[r] = 0;
	}
	return m;
}

static const uint64_t *
match_bitmap(const mesh_match_t *m, uint32_t i) {
	return &m->live[(size_t)i * m->nwords];
}

static unsigned
match_popcount(const mesh_match_t *m, uint32_t i) {
	const uint64_t *bitmap = match_bitmap(m, i);
	unsigned        count = 0;
	for (unsigned w = 0; w < m->nwords; w++) {
		count += (unsigned)__builtin_popcountll(bitmap[w]);
	}
	return count;
}

static bool
match_same(const mesh_match_t *m, uint32_t i, uint32_t j) {
	const uint64_t *a = match_bitmap(m, i);
	const uint64_t *b = match_bitmap(m, j);
	uint64_t        differ = 0;
	for (unsigned w = 0; w < m->nwords; w++) {
		differ |= a[w] ^ b[w];
	}
	return differ == 0;
}

/* Returns the hint for slabs with the bitmap of slab i (Fibonacci hashing). */
static match_hint_t *
match_hint(const mesh_match_t *m, uint32_t i) {
	const uint64_t *bitmap = match_bitmap(m, i);
	uint64_t        hash = 0;
	for (unsigned w = 0; w < m->nwords; w++) {
		hash = (hash ^ bitmap[w]) * UINT64_C(0x9e3779b97f4a7c15);
	}
	return &m->hints[((hash >> 32) * m->n) >> 32];
}

static bool
match_line_full(const match_line_t *line) {
	uint64_t all = ~UINT64_C(0);
	for (unsigned w = 0; w < LINE_NWORDS; w++) {
		all &= line->w[w];
	}
	return all == ~UINT64_C(0);
}

/* Gives the numbers of slabs in m->place[] their meaning for sorting. */
static void
match_places_set(mesh_match_t *m) {
	uint32_t place = 0;
	for (unsigned r = m->nregs + 1; r-- > 0;) {
		uint32_t count = m->place[r];
		m->place[r] = place;
		place += count;
	}
}

/* Lists the lines that slab i needs a zero in, and where to begin to look. */
static void
match_slab_begin(mesh_match_t *m, uint32_t i) {
	const uint64_t *bitmap = match_bitmap(m, i);
	unsigned        nrows = 0;
	for (unsigned w = 0; w < m->nwords; w++) {
		for (uint64_t bits = bitmap[w]; bits != 0; bits &= bits - 1) {
			m->row[nrows++] = (uint16_t)(w * 64
			    + (unsigned)__builtin_ctzll(bits));
		}
	}
	m->nrows_live = nrows;
	if (nrows == 0) {
		/* An empty slab fits every group that is not full. */
		m->row[nrows++] = (uint16_t)m->nregs;
	}
	for (; nrows % STRIDE != 0; nrows++) {
		m->row[nrows] = m->row[nrows - 1];
	}
	m->nrows = nrows;
	m->hint = match_hint(m, i);
	m->block = m->hint->slab != MESH_MATCH_END
	        && match_same(m, i, m->hint->slab)
	    ? m->hint->block
	    : 0;
}

/*
 * Returns the first group of the block, counted from its start, that has a zero
 * in all the lines of m->row[], BLOCK_NGROUPS if there is none; adds the number
 * of lines read to *used.
 */
static size_t
match_block_search(
    const mesh_match_t *m, const match_line_t *block, size_t *used) {
	match_line_t taken = {{0}};
	for (unsigned k = 0; k < m->nrows; k += STRIDE) {
		const match_line_t *a = &block[m->row[k]];
		const match_line_t *b = &block[m->row[k + 1]];
		const match_line_t *c = &block[m->row[k + 2]];
		const match_line_t *d = &block[m->row[k + 3]];
		for (unsigned w = 0; w < LINE_NWORDS; w++) {
			taken.w[w] |= (a->w[w] | b->w[w]) | (c->w[w] | d->w[w]);
		}
		*used += STRIDE;
		if (match_line_full(&taken)) {
			return BLOCK_NGROUPS;
		}
	}
	size_t w = 0;
	while (taken.w[w] == ~UINT64_C(0)) {
		w++;
	}
	return w * 64 + (size_t)__builtin_ctzll(~taken.w[w]);
}

static void
match_bit_set(match_line_t *line, size_t bit) {
	line->w[bit / 64] |= UINT64_C(1) << (bit % 64);
}

/* Puts slab i, the one that m->row[] is about, into a group of m->block. */
static void
match_slab_end(mesh_match_t *m, uint32_t i, match_line_t *block, size_t bit) {
	size_t g = ((size_t)m->block << BLOCK_LG) + bit;
	if (g == m->ngroups) {
		m->ngroups++;
		m->nlive[g] = 0;
		m->next[i] = i;
	} else {
		m->next[i] = m->next[m->last[g]];
		m->next[m->last[g]] = i;
	}
	m->last[g] = i;
	m->nlive[g] = (uint16_t)(m->nlive[g] + m->nrows_live);
	for (unsigned k = 0; k < m->nrows_live; k++) {
		match_bit_set(&block[m->row[k]], bit);
	}
	if (m->nlive[g] == m->nregs) {
		match_bit_set(&block[m->nregs], bit);
	}
	m->hint->slab = i;
	m->hint->block = m->block;
	m->nrows = 0;
}

/*
 * Looks into one block for a group that takes slab i.  Groups that do not exist
 * yet are empty and take any slab, so the search ends with a new group at the
 * latest.  Returns true if the slab has been placed.
 */
static bool
match_slab_place(mesh_match_t *m, uint32_t i, size_t *used) {
	if (m->nrows == 0) {
		match_slab_begin(m, i);
		*used += 1;
	}
	match_line_t *block = &m->lines[m->block * m->nlines];
	if (m->block == m->nblocks) {
		for (size_t r = 0; r < m->nlines; r++) {
			block[r] = (match_line_t){{0}};
		}
		m->nblocks++;
		*used += m->nlines;
	}
	size_t bit = match_block_search(m, block, used);
	if (bit == BLOCK_NGROUPS) {
		m->block++;
		return false;
	}
	match_slab_end(m, i, block, bit);
	*used += m->nrows_live;
	return true;
}

bool
mesh_match_step(mesh_match_t *m, size_t work) {
	size_t used = 0;
	while (m->phase != match_phase_done) {
		if (m->cursor == m->n) {
			if (m->phase == match_phase_count) {
				match_places_set(m);
			}
			m->phase++;
			m->cursor = 0;
			continue;
		}
		if (used >= work) {
			return false;
		}
		uint32_t k = m->cursor;
		switch (m->phase) {
		case match_phase_count:
			m->place[match_popcount(m, k)]++;
			m->hints[k].slab = MESH_MATCH_END;
			m->cursor++;
			used++;
			break;
		case match_phase_sort:
			m->order[m->place[match_popcount(m, k)]++] = k;
			m->cursor++;
			used++;
			break;
		default:
			if (match_slab_place(m, m->order[k], &used)) {
				m->cursor++;
			}
			break;
		}
	}
	return true;
}

size_t
mesh_match_ngroups(const mesh_match_t *m) {
	return m->ngroups;
}

uint32_t
mesh_match_first(const mesh_match_t *m, size_t g) {
	return m->next[m->last[g]];
}

uint32_t
mesh_match_next(const mesh_match_t *m, size_t g, uint32_t i) {
	return i == m->last[g] ? MESH_MATCH_END : m->next[i];
}
