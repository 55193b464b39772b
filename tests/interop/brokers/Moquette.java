import io.moquette.broker.Server;
import io.moquette.broker.config.MemoryConfig;
import io.moquette.broker.security.IAuthorizatorPolicy;
import io.moquette.broker.subscriptions.Topic;
import java.util.List;
import java.util.Properties;

/** A Moquette that keeps everything in memory: Moquette PORT [PREFIX]; topics that begin with PREFIX may not be published to. */
public class Moquette {
	public static void main(String[] argv) throws Exception {
		String prefix = argv.length > 1 ? argv[1] : "";
		Properties settings = new Properties();
		settings.setProperty("host", "127.0.0.1");
		settings.setProperty("port", argv[0]);
		settings.setProperty("allow_anonymous", "true");
		settings.setProperty("persistence_enabled", "false");
		settings.setProperty("telemetry_enabled", "false");
		IAuthorizatorPolicy topics = new IAuthorizatorPolicy() {
			@Override
			public boolean canWrite(Topic topic, String user, String client) {
				return prefix.isEmpty() || !topic.toString().startsWith(prefix);
			}

			@Override
			public boolean canRead(Topic topic, String user, String client) {
				return true;
			}
		};
		Server broker = new Server();
		broker.startServer(new MemoryConfig(settings), List.of(), null, null, topics);
		Runtime.getRuntime().addShutdownHook(new Thread(broker::stopServer));
		Thread.currentThread().join();
	}
}
