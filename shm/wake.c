#include "wake.h"

#include "error.h"

#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>

static int
membarrier(int command)
{
	return syscall(SYS_membarrier, command, 0, 0) == 0 ? 0 : -TG_ESYSTEM;
}

int
wake_register(void)
{
	return membarrier(MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED);
}

int
wake_barrier(void)
{
	if (order_is_weak(ORDER_C))
		return 0;
	return membarrier(MEMBARRIER_CMD_GLOBAL_EXPEDITED);
}
