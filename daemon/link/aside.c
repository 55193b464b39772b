#include "aside.h"

#include "shm/error.h"

#include <ck_ht.h>
#include <stdlib.h>

#define PLACES 64u /* at first */

static void *
allocate(size_t size)
{
	return malloc(size);
}

static void *
reallocate(void *from, size_t old_size, size_t size, bool defer)
{
	return realloc(from, size);
}

static void
release(void *memory, size_t size, bool defer)
{
	free(memory);
}

static struct ck_malloc allocator = { .malloc = allocate, .realloc = reallocate, .free = release };

/* Keys 0 and UINTPTR_MAX are the table's own. */
static uintptr_t
key_of(uint64_t number)
{
	return (uintptr_t)number + 1;
}

void
aside_fini(struct aside *aside)
{
	if (aside->table != NULL)
		ck_ht_destroy(aside->table);
	free(aside->table);
	*aside = (struct aside){ .table = NULL };
}

static int
begin(struct aside *aside)
{
	aside->table = calloc(1, sizeof(*aside->table));
	if (aside->table == NULL)
		return -TG_ENOMEM;
	if (ck_ht_init(aside->table, CK_HT_MODE_DIRECT, NULL, &allocator, PLACES, 0))
		return 0;
	free(aside->table);
	aside->table = NULL;
	return -TG_ENOMEM;
}

int
aside_put(struct aside *aside, uint64_t number, uintptr_t value)
{
	ck_ht_entry_t entry;
	ck_ht_hash_t hash;

	if (aside->count >= ASIDE_MAX)
		return -TG_ELIMIT;
	if (aside->table == NULL && begin(aside) != 0)
		return -TG_ENOMEM;
	ck_ht_hash_direct(&hash, aside->table, key_of(number));
	ck_ht_entry_set_direct(&entry, hash, key_of(number), value);
	if (!ck_ht_put_spmc(aside->table, hash, &entry))
		return -TG_ENOMEM;
	aside->count++;
	return 0;
}

uintptr_t
aside_get(const struct aside *aside, uint64_t number)
{
	ck_ht_entry_t entry;
	ck_ht_hash_t hash;

	if (aside->count == 0)
		return 0;
	ck_ht_hash_direct(&hash, aside->table, key_of(number));
	ck_ht_entry_key_set_direct(&entry, key_of(number));
	return ck_ht_get_spmc(aside->table, hash, &entry) ? ck_ht_entry_value_direct(&entry) : 0;
}

uintptr_t
aside_take(struct aside *aside, uint64_t number)
{
	ck_ht_entry_t entry;
	ck_ht_hash_t hash;

	if (aside->count == 0)
		return 0;
	ck_ht_hash_direct(&hash, aside->table, key_of(number));
	ck_ht_entry_key_set_direct(&entry, key_of(number));
	if (!ck_ht_remove_spmc(aside->table, hash, &entry))
		return 0;
	if (--aside->count == 0)
		ck_ht_reset_spmc(aside->table); /* removed entries leave marks that lengthen searches */
	return ck_ht_entry_value_direct(&entry);
}

uintptr_t
aside_any(const struct aside *aside, uint64_t *number)
{
	ck_ht_iterator_t at = CK_HT_ITERATOR_INITIALIZER;
	ck_ht_entry_t *entry;

	if (aside->count == 0 || !ck_ht_next(aside->table, &at, &entry))
		return 0;
	*number = (uint64_t)ck_ht_entry_key_direct(entry) - 1;
	return ck_ht_entry_value_direct(entry);
}

void
aside_each(const struct aside *aside, void (*call)(void *arg, uint64_t number, uintptr_t value), void *arg)
{
	ck_ht_iterator_t at = CK_HT_ITERATOR_INITIALIZER;
	ck_ht_entry_t *entry;

	while (aside->count > 0 && ck_ht_next(aside->table, &at, &entry))
		call(arg, (uint64_t)ck_ht_entry_key_direct(entry) - 1, ck_ht_entry_value_direct(entry));
}
