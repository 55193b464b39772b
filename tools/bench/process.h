/* Other processes: their CPU time, their memory, which one they are, and how to start and end one. */
#ifndef TG_BENCH_PROCESS_H
#define TG_BENCH_PROCESS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* CPU time, user and system, of all threads of a process, in ns. 0 if there is no such process. */
uint64_t process_cpu_ns(pid_t pid);

/* Memory of its own (anonymous and not shared), bytes. 0 if it cannot be told. */
uint64_t process_private_bytes(pid_t pid);

/* The process that listens on a SOCK_SEQPACKET unix socket: the one that called listen(). 0: unknown. */
pid_t process_of_socket(const char *path);

/*
 * The path of a program of this package: beside the running one, where the build tree or an
 * installation has it, then along PATH. Returns 0, or -1 if there is none.
 */
int process_find(const char *program, char *path, size_t size);

/*
 * Runs a program with standard output and error going to log_fd (-1: nowhere), its environment being ours and
 * what `environment` sets, which ends with NULL ("NAME=VALUE"; NULL: nothing). Returns its pid or -1 with
 * errno.
 */
pid_t process_start(const char *path, char *const argv[], char *const environment[], int log_fd);

/* SIGTERM, and SIGKILL if that has not ended it after timeout_ms. Waits for it. *pid becomes 0. */
void process_end(pid_t *pid, int timeout_ms);

/* 1 if a child has ended (it is then waited for). */
int process_has_ended(pid_t pid, int *status);

#endif
