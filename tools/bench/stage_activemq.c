/* An ActiveMQ of the bench's own: one STOMP connector, only its log on disk, no password.
 */
#include "build_config.h"

#include "tools/bench/process.h"
#include "tools/bench/stage_internal.h"
#include "tools/common/cli.h"

#include <string.h>
#include <unistd.h>

#define HOME "/usr/share/activemq" /* where Debian's package has it */
#define TEXT_MAX (6u * PATH_MAX)

static int
write_config(struct stage *stage, const struct bench_options *options, char path[PATH_MAX])
{
	char tls[2 * PATH_MAX] = "", text[TEXT_MAX];

	if (options->tls)
		snprintf(tls, sizeof(tls),
		    "  <sslContext><sslContext keyStore=\"file:%s\" keyStoreType=\"PKCS12\" "
		    "keyStorePassword=\"" STAGE_KEY_STORE_PASSWORD "\"/></sslContext>\n",
		    stage->key_store);
	snprintf(text, sizeof(text),
	    "<beans xmlns=\"http://www.springframework.org/schema/beans\" "
	    "xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" xsi:schemaLocation=\""
	    "http://www.springframework.org/schema/beans "
	    "http://www.springframework.org/schema/beans/spring-beans.xsd "
	    "http://activemq.apache.org/schema/core "
	    "http://activemq.apache.org/schema/core/activemq-core.xsd\">\n"
	    " <broker xmlns=\"http://activemq.apache.org/schema/core\" brokerName=\"bench\" "
	    "persistent=\"false\" "
	    "useJmx=\"false\" advisorySupport=\"false\" dataDirectory=\"%s\">\n%s"
	    "  <transportConnectors><transportConnector name=\"stomp\" "
	    "uri=\"%s://127.0.0.1:%u?wireFormat.maxInactivityDuration=0\"/></transportConnectors>\n"
	    " </broker>\n</beans>\n",
	    stage->folder, tls, options->tls ? "stomp+nio+ssl" : "stomp+nio", stage->port);
	return stage_write(stage, "activemq.xml", path, text);
}

int
stage_start_activemq(struct stage *stage, const struct bench_options *options)
{
	char config[PATH_MAX], base[PATH_MAX + 64], uri[PATH_MAX + 64];
	char *argv[] = { (char *)"java", (char *)"-Xms256m", (char *)"-Xmx1g", (char *)"-XX:+UseSerialGC",
		(char *)"-Dactivemq.home=" HOME, base, (char *)"-jar", (char *)HOME "/bin/activemq.jar",
		(char *)"start", uri, NULL };

	if (access(HOME "/bin/activemq.jar", R_OK) != 0) {
		cli_error("--start: activemq is not installed");
		return -1;
	}
	if (write_config(stage, options, config) != 0)
		return -1;
	snprintf(base, sizeof(base), "-Dactivemq.base=%s", stage->folder);
	snprintf(uri, sizeof(uri), "xbean:file:%s", config);
	return stage_run(stage, "java", argv, NULL, &stage->broker);
}
