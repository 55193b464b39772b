import java.io.File;
import org.apache.activemq.broker.BrokerService;

/** An ActiveMQ Classic 6 without Spring: ActiveMq6 FOLDER URI..., one connector a URI. */
public class ActiveMq6 {
	public static void main(String[] argv) throws Exception {
		BrokerService broker = new BrokerService();
		broker.setDataDirectoryFile(new File(argv[0]));
		broker.setUseJmx(false);
		for (int n = 1; n < argv.length; n++)
			broker.addConnector(argv[n]);
		broker.start();
		broker.waitUntilStopped();
	}
}
