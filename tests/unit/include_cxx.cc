// The public header in C++: compiled pedantically, linked, and the names unmangled.
#include <tidegate.h>
#include <tidegate.h>

#include <cstring>

int
main()
{
	tg_client_options options = {};
	options.socket = "/nobody/listens/here";
	tg_message message = {};
	message.topic = "t";
	message.topic_len = TG_NUL;
	message.flags = TG_QUIET;
	tg_client *client = nullptr;

	if (tg_client_open(&client, &options) != -TG_ENODAEMON)
		return 1;
	if (std::strstr(tg_client_detail(client), options.socket) == nullptr)
		return 2;
	if (tg_publish(nullptr, &message, nullptr) != -TG_EINVAL)
		return 3;
	return std::strcmp(tg_outcome_name(TG_SENT), "sent") != 0;
}
