/*
 * Ordered accesses to words shared between processes.
 *
 * Every access to a shared word goes through one of these, and names the pair it belongs to
 * (ring.h lists the pairs). libck's primitives do the work; under ThreadSanitizer, which does
 * not see through their inline assembly, the compiler's own atomics stand in, so that a missing
 * ordering is reported as the race it is.
 *
 * A mutant build (-DORDER_MUTANT=ORDER_A) weakens one pair to relaxed accesses. The tests must
 * catch every one of them; see tests/unit/mutants.sh.
 */
#ifndef TG_SHM_ORDER_H
#define TG_SHM_ORDER_H

#include <ck_pr.h>
#include <stdint.h>

#if defined(__SANITIZE_THREAD__)
#define ORDER_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define ORDER_TSAN 1
#endif
#endif

enum order_pair {
	ORDER_NONE,
	ORDER_A, /* sq_tail */
	ORDER_B, /* sq_head */
	ORDER_C, /* sq_tail / asleep */
	ORDER_D, /* cq_tail */
	ORDER_E, /* cq_head */
	ORDER_F, /* cq_tail / waiting */
	ORDER_G, /* cq_tail / sq_head */
};

/* A pair is weak in the build that asked for its mutant (-DORDER_MUTANT=ORDER_A), nowhere else. */
#ifndef ORDER_MUTANT
#define ORDER_MUTANT ORDER_NONE
#endif

static inline int
order_is_weak(enum order_pair pair)
{
	return pair == ORDER_MUTANT;
}

/* Loads a word that orders nothing (the peer's hint, our own word). */
static inline uint64_t
order_load_relaxed_64(const uint64_t *word)
{
#ifdef ORDER_TSAN
	return __atomic_load_n(word, __ATOMIC_RELAXED);
#else
	return ck_pr_load_64(word);
#endif
}

static inline uint32_t
order_load_relaxed_32(const uint32_t *word)
{
#ifdef ORDER_TSAN
	return __atomic_load_n(word, __ATOMIC_RELAXED);
#else
	return ck_pr_load_32(word);
#endif
}

static inline void
order_store_relaxed_64(uint64_t *word, uint64_t value)
{
#ifdef ORDER_TSAN
	__atomic_store_n(word, value, __ATOMIC_RELAXED);
#else
	ck_pr_store_64(word, value);
#endif
}

static inline void
order_store_relaxed_32(uint32_t *word, uint32_t value)
{
#ifdef ORDER_TSAN
	__atomic_store_n(word, value, __ATOMIC_RELAXED);
#else
	ck_pr_store_32(word, value);
#endif
}

/* Everything written before is visible to a thread that acquires this store. */
static inline void
order_store_release_64(enum order_pair pair, uint64_t *word, uint64_t value)
{
	if (order_is_weak(pair)) {
		order_store_relaxed_64(word, value);
		return;
	}
#ifdef ORDER_TSAN
	__atomic_store_n(word, value, __ATOMIC_RELEASE);
#else
	ck_pr_fence_release();
	ck_pr_store_64(word, value);
#endif
}

/* Nothing that follows is read before this load. */
static inline uint64_t
order_load_acquire_64(enum order_pair pair, const uint64_t *word)
{
	if (order_is_weak(pair))
		return order_load_relaxed_64(word);
#ifdef ORDER_TSAN
	return __atomic_load_n(word, __ATOMIC_ACQUIRE);
#else
	uint64_t value = ck_pr_load_64(word);
	ck_pr_fence_acquire();
	return value;
#endif
}

/* Stores before it are visible to all threads before loads after it are done. */
static inline void
order_fence_full(enum order_pair pair)
{
	if (order_is_weak(pair))
		return;
	ck_pr_fence_memory();
}

/* The compiler alone: for the side whose full fence the other side raises for it (membarrier). */
static inline void
order_fence_compiler(void)
{
	__asm__ __volatile__("" ::: "memory");
}

#endif
