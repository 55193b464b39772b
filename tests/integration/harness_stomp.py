"""ActiveMQ as Debian packages it, on a port and in a folder of the test's own, and a consumer over STOMP."""

import collections
import pathlib
import socket
import threading
from xml.sax.saxutils import escape

from harness import PATIENCE, Broker, have, wait_for

HOME = pathlib.Path("/usr/share/activemq")
JAR = HOME / "bin" / "activemq.jar"
HEAP = ["-Xms64m", "-Xmx512m", "-XX:+UseSerialGC"]


def available():
    return JAR.exists() and have("java")


def config_text(folder, port, users=None, options=(), key_store=None):
    """A broker's XML: one STOMP connector, messages on disk. users: name -> password; each may use the
    destinations of /queue/open.> and /topic/> alone; without users every client may use every destination.
    key_store: a PKCS #12 file whose password is "secret": the connector wants TLS."""
    plugins = ""
    if users:
        people = "".join(f'<authenticationUser username="{escape(user)}" password="{escape(word)}" groups="users"/>'
                         for user, word in users.items())
        plugins = f"""
  <plugins>
   <simpleAuthenticationPlugin anonymousAccessAllowed="false"><users>{people}</users></simpleAuthenticationPlugin>
   <authorizationPlugin><map><authorizationMap><authorizationEntries>
    <authorizationEntry queue=">" read="nobody" write="nobody" admin="users"/>
    <authorizationEntry queue="open.>" read="users" write="users" admin="users"/>
    <authorizationEntry topic=">" read="users" write="users" admin="users"/>
   </authorizationEntries></authorizationMap></map></authorizationPlugin>
  </plugins>"""
    query = "".join(f"&amp;{option}" for option in options)
    scheme, tls = "stomp", ""
    if key_store:
        scheme = "stomp+ssl"
        tls = f"""
  <sslContext><sslContext keyStore="file:{key_store}" keyStoreType="PKCS12" keyStorePassword="secret"/></sslContext>"""
    return f"""<beans xmlns="http://www.springframework.org/schema/beans" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
 xsi:schemaLocation="http://www.springframework.org/schema/beans http://www.springframework.org/schema/beans/spring-beans.xsd
  http://activemq.apache.org/schema/core http://activemq.apache.org/schema/core/activemq-core.xsd">
 <broker xmlns="http://activemq.apache.org/schema/core" brokerName="tide{port}" dataDirectory="{folder}/data" useJmx="false"
  schedulePeriodForDestinationPurge="0" advisorySupport="true">{plugins}
  <destinationPolicy><policyMap><policyEntries>
   <policyEntry queue=">" producerFlowControl="false" queuePrefetch="1000"/>
  </policyEntries></policyMap></destinationPolicy>
  <persistenceAdapter><kahaDB directory="{folder}/data/kahadb" journalMaxFileLength="8mb"/></persistenceAdapter>{tls}
  <transportConnectors>
   <transportConnector name="stomp" uri="{scheme}://127.0.0.1:{port}?wireFormat.maxInactivityDuration=0{query}"/>
  </transportConnectors>
 </broker>
</beans>
"""


def command(folder, config):
    return ["java", *HEAP, f"-Dactivemq.home={HOME}", f"-Dactivemq.base={folder}", "-jar", str(JAR), "start",
            f"xbean:file:{config}"]


class ActiveMQ(Broker):
    """A real ActiveMQ. It takes a second or two to start: let tests share one, each with queues of its own."""

    def __init__(self, box, name="activemq", users=None, options=(), key_store=None, port=None):
        super().__init__(box, name, port)
        self.folder = box.path / name
        self.folder.mkdir()
        self.config = self.folder / "broker.xml"
        self.config.write_text(config_text(self.folder, self.port, users, options, key_store))

    def argv(self):
        return command(self.folder, self.config)


Message = collections.namedtuple("Message", "command headers body")


def unescape(text):
    parts = text.split("\\\\")
    return "\\".join(part.replace("\\n", "\n").replace("\\r", "\r").replace("\\c", ":") for part in parts)


class Stomp:
    """One raw STOMP 1.2 connection."""

    def __init__(self, port, login=None, passcode=None, host="/"):
        self.socket = socket.create_connection(("127.0.0.1", port), 10 * PATIENCE)
        self.socket.settimeout(20 * PATIENCE)
        self.buffer = b""
        headers = {"accept-version": "1.2", "host": host}
        if login is not None:
            headers |= {"login": login, "passcode": passcode}
        self.send("CONNECT", headers)
        answer = self.frame()
        if answer.command != "CONNECTED":
            raise ConnectionError(str(answer))

    def send(self, name, headers, body=b""):
        lines = [name, *(f"{key}:{value}" for key, value in headers.items()), "", ""]
        self.socket.sendall("\n".join(lines).encode() + body + b"\0")

    def more(self):
        data = self.socket.recv(1 << 18)
        if not data:
            raise ConnectionError("the broker closed the connection")
        self.buffer += data

    def frame(self):
        """The next frame, waiting for it."""
        while True:
            frames = self.frames(1)
            if frames:
                return frames[0]
            self.more()

    def frames(self, most=None):
        """The whole frames that are there."""
        found, at, data = [], 0, self.buffer
        while most is None or len(found) < most:
            while data[at:at + 1] == b"\n":
                at += 1
            end = data.find(b"\n\n", at)
            if end < 0:
                break
            command, *lines = data[at:end].decode("utf-8", "surrogateescape").split("\n")
            headers = {}
            for line in lines:
                key, _, value = line.partition(":")
                headers.setdefault(unescape(key), unescape(value))
            start = end + 2
            stop = start + int(headers["content-length"]) if "content-length" in headers else data.find(b"\0", start)
            if stop < 0 or stop >= len(data):
                break
            assert data[stop] == 0, data[at:stop + 1]
            found.append(Message(command, headers, data[start:stop]))
            at = stop + 1
        self.buffer = data[at:]
        return found

    def close(self):
        self.socket.close()


class Consumer:
    """Reads destinations in a thread of its own and acknowledges what it has; connects anew when the broker
    comes back. load.py uses it like a sink, through body_starts()."""

    def __init__(self, port, *destinations, name="consumer", **login):
        self.port, self.destinations, self.name, self.login = port, destinations, name, login
        self.record = None  # as a sink's: check_all_arrived asks body_starts()
        self.messages = []
        self.subscriptions = 0
        self.connection = None
        self.ended = False
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
        wait_for(lambda: self.subscriptions >= len(destinations), f"{name} to be subscribed", 20)

    def run(self):
        while not self.ended:
            try:
                self.connection = Stomp(self.port, **self.login)
                self.listen()
            except OSError:
                threading.Event().wait(0.05)  # the broker is down; the next attempt decides

    def listen(self):
        for number, destination in enumerate(self.destinations):
            self.connection.send("SUBSCRIBE", {"destination": destination, "id": number, "ack": "client",
                                               "receipt": f"s{number}", "activemq.prefetchSize": "1000"})
        self.connection.socket.settimeout(None)
        while True:
            last = {}
            for frame in self.connection.frames():
                if frame.command == "RECEIPT":
                    self.subscriptions += 1
                    continue
                assert frame.command == "MESSAGE", frame
                self.messages.append(frame)
                last[frame.headers["subscription"]] = frame.headers["ack"]
            # Cumulative: the broker may forget every message in our list.
            for ack in last.values():
                self.connection.send("ACK", {"id": ack})
            self.connection.more()

    def count(self):
        return len(self.messages)

    def wait(self, count, deadline_s=20):
        wait_for(lambda: self.count() >= count, lambda: f"{count} messages, {self.count()} came", deadline_s)
        return self.messages

    def body_starts(self):
        for message in list(self.messages):
            yield message.body[:64].decode(errors="replace")

    def close(self):
        self.ended = True
        if self.connection:
            self.connection.socket.shutdown(socket.SHUT_RDWR)
        self.thread.join(10)
