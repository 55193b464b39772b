/*
 * Which process does a handle belong to? One page, marked MADV_WIPEONFORK, holds one word: its
 * owner's stamp. The kernel hands a forked child a zeroed page, so a handle whose stamp is not
 * what the page says was inherited. Asking costs one load and no system call.
 *
 * No locks: a lock that another thread of the parent held would never be released in the child.
 */
#include "internal.h"

#include <ck_pr.h>
#include <errno.h>
#include <sys/mman.h>

static uint32_t *page;      /* never unmapped: handles point into it */
static uint32_t last_stamp; /* inherited by children, so that their stamps differ from ours */

static uint32_t *
page_get(void)
{
	uint32_t *p = ck_pr_load_ptr(&page);

	if (p != NULL)
		return p;
	p = mmap(NULL, LANE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		return NULL;
	if (madvise(p, LANE_PAGE, MADV_WIPEONFORK) != 0) {
		int saved = errno;

		munmap(p, LANE_PAGE);
		errno = saved;
		return NULL;
	}
	if (!ck_pr_cas_ptr(&page, NULL, p)) {
		munmap(p, LANE_PAGE); /* another thread was first */
		p = ck_pr_load_ptr(&page);
	}
	return p;
}

int
fork_mark_get(struct fork_mark *mark)
{
	uint32_t *p = page_get();
	uint32_t stamp;

	if (p == NULL)
		return -TG_ESYSTEM;
	while ((stamp = order_load_relaxed_32(p)) == 0) {
		uint32_t fresh = ck_pr_faa_32(&last_stamp, 1) + 1;

		if (fresh != 0) /* after four billion generations */
			ck_pr_cas_32(p, 0, fresh);
	}
	mark->word = p;
	mark->stamp = stamp;
	return 0;
}
