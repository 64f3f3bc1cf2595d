/*
 * What C++ does with a heap that is meshed: containers, exceptions, memory
 * resources, new and delete of all kinds, in several threads.  Every value can be
 * told from its key.
 */
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <future>
#include <map>
#include <memory>
#include <memory_resource>
#include <new>
#include <random>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include <jemalloc/jemalloc.h>

namespace {

struct alignas(128) Aligned {
	explicit Aligned(uint64_t key) : key(key), twin(~key) {
	}
	uint64_t key, twin;
};

std::string
value(uint64_t key) {
	return std::string(16 + key % 700, char('a' + key % 26))
	    + std::to_string(key);
}

void
require(bool good) {
	if (!good) {
		throw std::logic_error("an object is not what it was");
	}
}

/* Throws from some depth, with objects to unwind on the way. */
uint64_t
dive(uint64_t key, unsigned depth) {
	std::string local = value(key + depth);
	if (depth == 0) {
		throw std::runtime_error(local);
	}
	try {
		return dive(key, depth - 1);
	} catch (std::runtime_error &) {
		require(local == value(key + depth));
		throw;
	}
}

void
mesh() {
	mallctl("thread.tcache.flush", nullptr, nullptr, nullptr, 0);
	mallctl("arena.4096.mesh", nullptr, nullptr, nullptr, 0);
}

void
work(unsigned seed) {
	std::mt19937_64                 rng(seed);
	std::map<uint64_t, std::string> tree;
	std::unordered_map<uint64_t, std::unique_ptr<Aligned>> hash;
	for (unsigned round = 0; round < 2; round++) {
		std::pmr::unsynchronized_pool_resource pool;
		std::pmr::vector<std::pmr::string>     pooled(&pool);
		for (unsigned i = 0; i < 20000; i++) {
			uint64_t key = rng() % 1000000;
			tree[key] = value(key);
			hash[key] = std::make_unique<Aligned>(key);
			pooled.emplace_back(value(i));
		}
		for (auto it = tree.begin(); it != tree.end();) {
			it = rng() % 10 != 0 ? tree.erase(it) : std::next(it);
		}
		for (auto it = hash.begin(); it != hash.end();) {
			it = rng() % 10 != 0 ? hash.erase(it) : std::next(it);
		}
		mesh();
		for (unsigned i = 0; i < 50; i++) {
			try {
				dive(rng(), 20);
				require(false);
			} catch (const std::runtime_error &error) {
				require(error.what()[0] >= 'a');
			}
			try {
				char *volatile p = new char[SIZE_MAX / 4 + i];
				delete[] p;
				require(false);
			} catch (const std::bad_alloc &) {
			}
		}
		for (auto &[key, text] : tree) {
			require(text == value(key));
			text += text;
			text.resize(text.size() / 2);
			text.shrink_to_fit();
		}
		for (auto &[key, aligned] : hash) {
			require(aligned->key == key && aligned->twin == ~key);
			require(uintptr_t(aligned.get()) % 128 == 0);
		}
		for (size_t i = 0; i < pooled.size(); i++) {
			require(pooled[i] == value(i).c_str());
		}
	}
}

} // namespace

int
main() {
	uint64_t nmeshes = 0, epoch = 1;
	size_t   size = sizeof(nmeshes);
	std::vector<std::future<void>> threads;
	for (unsigned i = 0; i < 3; i++) {
		threads.push_back(std::async(std::launch::async, work, i));
	}
	for (auto &thread : threads) {
		thread.get();
	}
	mallctl("epoch", nullptr, nullptr, &epoch, sizeof(epoch));
	mallctl("stats.mesh.nmeshes", &nmeshes, &size, nullptr, 0);
	std::printf("{\"nmeshes\": %llu}\n", (unsigned long long)nmeshes);
	return 0;
}
