#!/usr/bin/python3
"""Records transcripts from real brokers, so that they hold the bytes that brokers really send.

    record.py CONFORMANCE TRANSCRIPT...

CONFORMANCE is the built tests/conformance/conformance. Each transcript's steps are played to a
fresh broker on loopback, and the file is rewritten with the bytes sent and received. Its head configures the
broker:

    # broker: mosquitto
    # broker-config: allow_anonymous true
    # broker-file: passwords u:secret          (one line of it; mosquitto_passwd is run over passwords)

    # broker: nats-server
    # broker-config: authorization { user: u, password: secret }
    # broker-stream: S s.> {"max_msgs": 1}     (made before recording, by a user maker, password maker)

    # broker: rabbitmq
    # broker-config: frame_max = 4096
    # broker-setup: queue q                   (tests/integration/harness_amqp.py's declare)

    # broker: redis-server
    # broker-config: requirepass secret
    # broker-command: SET s text               (run by redis-cli before recording)

    # broker: activemq
    # broker-user: u secret                    (may write to /queue/open.>, without users any client may write
    # anywhere)
    # broker-option: transport.maxFrameSize=2000

{dir} in a config line is the broker's scratch folder.
"""

import json
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time

READY_S = 10


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(port, process):
    end = time.monotonic() + READY_S
    while time.monotonic() < end:
        if process.poll() is not None:
            raise SystemExit(f"the broker ended with {process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.02)
    raise SystemExit(f"the broker does not answer on port {port} within {READY_S} s")


def mosquitto(folder, port, lines, files):
    for name, content in files:
        path = folder / name
        with open(path, "a", encoding="utf-8") as to:
            to.write(content + "\n")
        path.chmod(0o600)
        if name == "passwords":
            subprocess.run(["mosquitto_passwd", "-U", path], check=True)
    config = folder / "mosquitto.conf"
    config.write_text("\n".join([f"listener {port} 127.0.0.1", "user root", *lines]) + "\n")
    return ["mosquitto", "-c", config]


def nats_server(folder, port, lines, files):
    config = folder / "nats.conf"
    config.write_text("\n".join([f'listen: "127.0.0.1:{port}"', f'jetstream {{ store_dir: "{folder}/js" }}',
                                 *lines]) + "\n")
    return ["nats-server", "-c", config]


def make_streams(port, text):
    """JetStream's own interface, spoken by hand."""
    for name, subject, more in re.findall(r"^# broker-stream: (\S+) (\S+)(?: (.*))?$", text, re.M):
        config = json.dumps({"name": name, "subjects": [subject], "storage": "memory", **json.loads(more or "{}")})
        with socket.create_connection(("127.0.0.1", port), 5) as server:
            stream = server.makefile("rwb")
            stream.write(b'CONNECT {"verbose":false,"user":"maker","pass":"maker"}\r\nSUB answer 1\r\n'
                         b"PUB $JS.API.STREAM.CREATE.%s answer %d\r\n%s\r\n"
                         % (name.encode(), len(config), config.encode()))
            stream.flush()
            for line in stream:
                if line.startswith(b"MSG answer"):
                    break
            if b'"did_create":true' not in stream.readline():
                raise SystemExit(f"the stream {name} was not made")


def redis_server(folder, port, lines, files):
    config = folder / "redis.conf"
    config.write_text("\n".join([f"port {port}", "bind 127.0.0.1", 'save ""', f"dir {folder}", *lines]) + "\n")
    return ["redis-server", config]


def run_commands(port, text):
    for words in re.findall(r"^# broker-command: (.*)$", text, re.M):
        subprocess.run(["redis-cli", "-p", str(port), *words.split()], check=True, stdout=subprocess.DEVNULL)


BROKERS = {"mosquitto": mosquitto, "nats-server": nats_server, "redis-server": redis_server}


def rabbitmq(box, text):
    import harness_amqp  # pylint: disable=import-outside-toplevel
    rabbit = harness_amqp.Rabbit(box, lines=re.findall(r"^# broker-config: (.*)$", text, re.M)).start()
    things = [line.split() for line in re.findall(r"^# broker-setup: (.*)$", text, re.M)]
    if things:
        rabbit.declare(*things)
    return rabbit.port


def activemq(box, text):
    import harness_stomp  # pylint: disable=import-outside-toplevel
    users = dict(re.findall(r"^# broker-user: (\S+) (\S+)$", text, re.M))
    return harness_stomp.ActiveMQ(box, users=users, options=re.findall(r"^# broker-option: (.*)$", text, re.M)).start().port


# Brokers that the integration tests can start.
HARNESSED = {"rabbitmq": rabbitmq, "activemq": activemq}


def record_harnessed(conformance, transcript, text, start):
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "integration"))
    import harness  # pylint: disable=import-outside-toplevel
    with tempfile.TemporaryDirectory() as scratch:
        box = harness.Box(pathlib.Path(scratch))
        try:
            made = subprocess.run([conformance, "--record", "127.0.0.1", str(start(box, text)), transcript],
                                  stdout=subprocess.PIPE, check=True).stdout
        finally:
            box.fini()
    transcript.write_bytes(made)


def record(conformance, transcript):
    text = transcript.read_text()
    kind = re.search(r"^# broker: (\S+)$", text, re.M)
    if kind and kind.group(1) in HARNESSED:
        record_harnessed(conformance, transcript, text, HARNESSED[kind.group(1)])
        print(f"{transcript.name}: recorded")
        return
    if not kind or kind.group(1) not in BROKERS:
        raise SystemExit(f"{transcript}: no line '# broker: {'|'.join([*BROKERS, *HARNESSED])}'")
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        port = free_port()
        lines = [line.replace("{dir}", scratch) for line in re.findall(r"^# broker-config: (.*)$", text, re.M)]
        files = re.findall(r"^# broker-file: (\S+) (.*)$", text, re.M)
        command = BROKERS[kind.group(1)](folder, port, lines, files)
        with open(folder / "log", "wb") as log:
            broker = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_for(port, broker)
            make_streams(port, text)
            run_commands(port, text)
            made = subprocess.run([conformance, "--record", "127.0.0.1", str(port), transcript],
                                  stdout=subprocess.PIPE, check=True).stdout
        finally:
            broker.terminate()
            broker.wait()
    transcript.write_bytes(made)
    print(f"{transcript.name}: recorded")


def main():
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    for name in sys.argv[2:]:
        record(sys.argv[1], pathlib.Path(name))


if __name__ == "__main__":
    main()
