/*
 * tidegate-once's counterpart without tidegate: connect to the server, add one entry, see its id,
 * disconnect, exit.
 *
 *	tidegate-once-redis HOST PORT TOPIC SIZE
 */
#include <hiredis/hiredis.h>
#include <stdio.h>
#include <stdlib.h>

int
main(int argc, char **argv)
{
	struct timeval limit = { .tv_sec = 10 };
	int confirmed = 0;

	if (argc != 5) {
		fprintf(stderr, "usage: tidegate-once-redis HOST PORT TOPIC SIZE\n");
		return 1;
	}
	size_t size = strtoul(argv[4], NULL, 10);
	char *body = calloc(1, size + 1);
	redisContext *redis = redisConnectWithTimeout(argv[1], atoi(argv[2]), limit);
	redisReply *reply = NULL;
	if (body == NULL || redis == NULL)
		return 1;
	if (redis->err == 0) {
		redisSetTimeout(redis, limit);
		reply = redisCommand(redis, "XADD %s MAXLEN ~ 100000 * body %b", argv[3], body, size);
	}
	confirmed = reply != NULL && reply->type == REDIS_REPLY_STRING;
	if (!confirmed)
		fprintf(stderr, "tidegate-once-redis: %s port %s: %s\n", argv[1], argv[2],
		    reply != NULL ? reply->str : redis->errstr);
	if (reply != NULL)
		freeReplyObject(reply);
	redisFree(redis);
	free(body);
	return confirmed ? 0 : 1;
}
