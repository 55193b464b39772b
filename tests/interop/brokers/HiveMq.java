import com.hivemq.embedded.EmbeddedExtension;
import com.hivemq.embedded.EmbeddedHiveMQ;
import com.hivemq.extension.sdk.api.ExtensionMain;
import com.hivemq.extension.sdk.api.auth.SimpleAuthenticator;
import com.hivemq.extension.sdk.api.auth.PublishAuthorizer;
import com.hivemq.extension.sdk.api.packets.disconnect.DisconnectReasonCode;
import com.hivemq.extension.sdk.api.packets.publish.AckReasonCode;
import com.hivemq.extension.sdk.api.parameter.*;
import com.hivemq.extension.sdk.api.services.Services;
import java.nio.file.Path;

/**
 * A HiveMQ CE in a folder that has conf/config.xml: HiveMq FOLDER [PREFIX [close]]; topics that begin with PREFIX may not be
 * published to, and with "close" HiveMQ ends the connection over such a message without answering it.
 */
public class HiveMq {
	public static void main(String[] argv) throws Exception {
		Path folder = Path.of(argv[0]);
		String prefix = argv.length > 1 ? argv[1] : "";
		boolean close = argv.length > 2;
		ExtensionMain rules = new ExtensionMain() {
			@Override
			public void extensionStart(ExtensionStartInput input, ExtensionStartOutput output) {
				SimpleAuthenticator everybody = (in, out) -> out.authenticateSuccessfully();
				PublishAuthorizer topics = (in, out) -> {
					if (prefix.isEmpty() || !in.getPublishPacket().getTopic().startsWith(prefix))
						out.authorizeSuccessfully();
					else if (close)
						out.disconnectClient(DisconnectReasonCode.NOT_AUTHORIZED, "not yours");
					else
						out.failAuthorization(AckReasonCode.NOT_AUTHORIZED, "not yours");
				};
				Services.securityRegistry().setAuthenticatorProvider(in -> everybody);
				Services.securityRegistry().setAuthorizerProvider(in -> topics);
			}

			@Override
			public void extensionStop(ExtensionStopInput input, ExtensionStopOutput output) {
			}
		};
		EmbeddedExtension extension = EmbeddedExtension.builder().withId("rules").withName("rules").withVersion("1")
			.withPriority(0).withStartPriority(1000).withAuthor("tests").withExtensionMain(rules).build();
		EmbeddedHiveMQ broker = EmbeddedHiveMQ.builder().withConfigurationFolder(folder.resolve("conf"))
			.withDataFolder(folder.resolve("data")).withExtensionsFolder(folder.resolve("extensions"))
			.withEmbeddedExtension(extension).build();
		Runtime.getRuntime().addShutdownHook(new Thread(() -> broker.stop().join()));
		broker.start().join();
		Thread.currentThread().join();
	}
}
