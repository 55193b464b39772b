import java.util.HashMap;
import java.util.Map;
import org.apache.qpid.server.SystemLauncher;

/** A Qpid Broker-J that keeps everything in memory: Qpid CONFIGURATION.json FOLDER */
public class Qpid {
	public static void main(String[] argv) throws Exception {
		Map<String, Object> attributes = new HashMap<>();
		attributes.put("type", "Memory");
		attributes.put("initialConfigurationLocation", argv[0]);
		attributes.put("startupLoggedToSystemOut", true);
		attributes.put("context", Map.of("qpid.work_dir", argv[1]));
		SystemLauncher broker = new SystemLauncher();
		broker.startup(attributes);
		Thread.currentThread().join();
	}
}
