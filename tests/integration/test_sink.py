"""tidegate-sink: it is a good broker, and it is each kind of bad one, as told."""

import re
import resource
import socket
import subprocess
import threading

import paho.mqtt.client as paho
import pytest

from harness import BUILD, ROOT, PATIENCE, Process, Sink, listens, program, wait_for
from raw_mqtt import (CONNACK, DISCONNECT, PINGRESP, PUBCOMP, PUBREC, SUBACK, UNSUBACK, Raw, connect_packet, length, packet,
                      publish_packet, text, user_property)

VERSIONS = [4, 5]
UNESCAPE = {b"t": b"\t", b"n": b"\n", b"r": b"\r", b"\\": b"\\"}


def unescape(data):
    return re.sub(rb"\\(?:x(..)|(.))", lambda m: bytes([int(m[1], 16)]) if m[1] else UNESCAPE[m[2]], data)


@pytest.fixture
def sinks(box):
    """sinks("--option", …): a started sink."""
    count = iter(range(100))

    def start(*options, **more):
        return Sink(box, f"sink{next(count)}", options=[str(word) for word in options], **more).start()
    return start


def raw(sink, version=4, **options):
    return Raw(("127.0.0.1", sink.port), version, **options)


def wait_stats(sink, **expected):
    def reached():
        stats = sink.stats()
        return stats if all(stats[key] >= value for key, value in expected.items()) else None
    return wait_for(reached, lambda: f"{sink.name} to reach {expected}: {sink.stats()}")


def bodies(sink):
    return [row["body"] for row in sink.arrivals()]


# --- a good broker ---


@pytest.mark.sanitizers
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_real_client_publishes(sink, version, qos):
    client = paho.Client(f"paho{version}{qos}", protocol=version)
    client.connect("127.0.0.1", sink.port)
    client.loop_start()
    try:
        sent = [f"message {i} tab\t back\\slash \x01 grün" for i in range(300)]
        handles = [client.publish("a/b", body, qos=qos) for body in sent]
        for handle in handles:
            handle.wait_for_publish(10 * PATIENCE)
            assert handle.is_published()
    finally:
        client.disconnect()
        client.loop_stop()
    wait_stats(sink, recorded=300)
    lines = sink.record.read_bytes().splitlines()
    assert [unescape(line.split(b"\t")[8]).decode() for line in lines] == sent
    rows = sink.arrivals()
    assert [int(row["seq"]) for row in rows] == list(range(1, 301))
    assert {(row["qos"], row["flags"], row["topic"]) for row in rows} == {(str(qos), "-", "a/b")}


@pytest.mark.sanitizers
def test_record_has_every_column(sink):
    with raw(sink, 5) as client:
        properties = user_property("colour", "a=b;c\\") + user_property("tidegate-key", "k\t1") + user_property("x", "ü")
        client.publish(1, b"\x00\x7f\xff\n", topic="a\tb", properties=properties, retain=True)
        client.publish(2, "", dup=True)
        assert client.ids(2) == [1, 2]
    # Bytes above 0x7f are written as they are.
    first, second = (line.split(b"\t") for line in sink.record.read_bytes().splitlines())
    assert first[3:] == [b"1", b"r", rb"a\tb", rb"k\t1", rb"colour=a\x3db\x3bc\\;x=" + "ü".encode(), b"\\x00\\x7f\xff\\n"]
    assert second[2:] == [b"2", b"1", b"d", b"t", b"", b"", b""]
    assert sink.stats()["dups"] == 1


def test_record_format_body_is_the_lines_that_were_published(sinks):
    sink = sinks("--record-format", "body")
    with raw(sink) as client:
        for number, line in enumerate(("one", "two\ttwo", ""), 1):
            client.publish(number, line)
        client.ids(3)
    assert sink.record.read_text() == "one\ntwo\\ttwo\n\n"


@pytest.mark.sanitizers
@pytest.mark.parametrize("version", VERSIONS)
def test_bytes_cut_anywhere_are_the_same_messages(sink, version):
    stream = b"".join(publish_packet(version, i, f"body {i}" * i, topic=f"t/{i}") for i in range(1, 20)) + b"\xc0\x00"
    with raw(sink, version) as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(len(stream)):
            client.send(stream[at:at + 1])
        assert client.ids(19) == list(range(1, 20))
        assert client.receive()[0] == PINGRESP
    assert bodies(sink) == [f"body {i}" * i for i in range(1, 20)]


@pytest.mark.sanitizers
def test_messages_of_every_size_arrive_whole(sink):
    sizes = [0, 1, 7, 8, 127, 128, 16383, 65535, 262143, 262144, 262145, 300000, 1 << 20, 5 << 20, 3]
    with raw(sink) as client:
        for number, size in enumerate(sizes, 1):
            client.publish(number, bytes([97 + number]) * size)
        assert client.ids(len(sizes)) == list(range(1, len(sizes) + 1))
    assert [(len(body), body[:1]) for body in bodies(sink)] == \
        [(size, chr(97 + number) if size else "") for number, size in enumerate(sizes, 1)]


def test_answered_messages_are_in_the_record(sink):
    with raw(sink) as client:
        for number in range(1, 300):
            client.publish(number, f"m{number}")
            client.ids(1)
            assert bodies(sink)[-1] == f"m{number}"


@pytest.mark.parametrize("version", VERSIONS)
def test_qos_2_records_a_repeated_message_once(sink, version):
    with raw(sink, version) as client:
        client.publish(7, "once", qos=2)
        assert client.receive()[0] == PUBREC
        client.publish(7, "once", qos=2, dup=True)
        assert client.receive()[0] == PUBREC
        client.send(packet(0x62, b"\x00\x07"))
        assert client.receive()[0] == PUBCOMP
        client.publish(7, "twice", qos=2)
        assert client.receive()[0] == PUBREC
    assert bodies(sink) == ["once", "twice"]


def test_topic_aliases_stand_for_their_topic(sink):
    with raw(sink, 5) as client:
        client.publish(1, topic="long/topic", properties=b"\x23\x00\x02")
        client.publish(2, topic="", properties=b"\x23\x00\x02")
        client.publish(3, topic="other", properties=b"\x23\x00\x02")
        client.publish(4, topic="", properties=b"\x23\x00\x02")
        assert client.ids(4) == [1, 2, 3, 4]
        client.publish(5, topic="", properties=b"\x23\x00\x03")
        kind, _, body = client.receive()
        assert (kind, body[0]) == (DISCONNECT, 0x82)
    assert [row["topic"] for row in sink.arrivals()] == ["long/topic", "long/topic", "other", "other"]


@pytest.mark.parametrize("version", VERSIONS)
def test_subscriptions_are_refused(sink, version):
    none = b"\x00" if version == 5 else b""
    with raw(sink, version) as client:
        client.send(packet(0x82, b"\x00\x05" + none + text("a/#") + b"\x01" + text("b") + b"\x00"))
        kind, _, body = client.receive()
        code = b"\x87" if version == 5 else b"\x80"
        assert (kind, body) == (SUBACK, b"\x00\x05" + none + code * 2)
        client.send(packet(0xA2, b"\x00\x06" + none + text("a/#")))
        kind, _, body = client.receive()
        assert (kind, body) == (UNSUBACK, b"\x00\x06" + none + (b"\x11" if version == 5 else b""))


def test_every_kind_of_address(box):
    path = box.path / "s"
    process = Process(box, "addresses", [program("tidegate-sink"), "--protocol", "mqtt", "--listen",
                                         f"127.0.0.1:0,unix:{path}", "--listen", "[::1]:0", "--no-record"])
    lines = wait_for(lambda: (found := re.findall(r"listening mqtt (\S+)\n", process.text())) and len(found) == 3 and found,
                     "three listeners")
    assert lines[1] == f"unix:{path}"
    assert int(lines[0].rpartition(":")[2]) > 0 and lines[2].startswith("[::1]:")
    for address in (("127.0.0.1", int(lines[0].rpartition(":")[2])), str(path), ("::1", int(lines[2].rpartition(":")[2]))):
        with Raw(address) as client:
            client.publish(1)
            assert client.ids(1) == [1]
    assert process.stop() == 0
    assert not path.exists()


def test_a_dead_sinks_socket_file_is_taken_over_and_a_live_ones_is_not(box, sink):
    second = box.run(program("tidegate-sink"), "--protocol", "mqtt", "--listen", "127.0.0.1:0", "--no-record",
                     "--control", f"unix:{sink.control}")
    assert second.returncode == 1 and "in use" in second.stderr
    sink.kill()
    assert sink.control.exists()
    sink.start()
    assert sink.stats()["messages"] == 0


def test_sigterm_leaves_the_record_and_the_figures(sink):
    with raw(sink) as client:
        client.publish(1, "x" * 10)
        client.ids(1)
        assert sink.stop() == 0
    assert bodies(sink) == ["x" * 10]
    assert re.search(r'^\{"protocol":"mqtt",.*"messages":1,"bytes":10,"acks":1,.*"recorded":1,', sink.process.text(), re.M)


def test_a_restarted_sink_keeps_its_record(sink):
    for word in ("before", "after"):
        with raw(sink) as client:
            client.publish(1, word)
            client.ids(1)
        sink.stop()
        sink.start()
    assert bodies(sink) == ["before", "after"]


def test_keepalive_of_a_silent_client_ends_it(sink):
    with raw(sink, 5, keepalive=1) as client:
        assert client.end()[0] == "fin"
    assert "keepalive" in sink.process.text()


# --- answers ---


def test_ack_delay_holds_each_answer_and_can_be_changed(sinks):
    sink = sinks("--ack-delay", 3600000)
    with raw(sink) as client:
        client.publish(1)
        client.publish(2)
        wait_stats(sink, pending=2)
        client.ping()
        assert client.receive()[0] == PINGRESP  # and no PUBACK in front of it
        assert bodies(sink) == ["body", "body"]
        sink.tell("set", "ack-delay", "50")
        assert client.ids(2) == [1, 2]
        client.publish(3)
        assert client.ids(1) == [3]


def test_ack_delay_is_as_long_as_told(sinks):
    import time
    sink = sinks("--ack-delay", 200)
    with raw(sink) as client:
        start = time.monotonic()
        client.publish(1)
        client.ids(1)
        assert 0.19 < time.monotonic() - start < 0.2 + 2 * PATIENCE


def test_ack_after_answers_in_groups(sinks):
    sink = sinks("--ack-after", 3)
    with raw(sink) as client:
        client.publish(1)
        client.publish(2)
        client.ping()
        assert client.receive()[0] == PINGRESP
        client.publish(3)
        client.publish(4)
        assert client.ids(3) == [1, 2, 3]
        client.ping()
        assert client.receive()[0] == PINGRESP
        sink.tell("set", "ack-after", "0")
        assert client.ids(1) == [4]


def test_no_ack_answers_pings_only(sinks):
    sink = sinks("--no-ack")
    with raw(sink) as client:
        client.publish(1, "unanswered")
        client.ping()
        assert client.receive()[0] == PINGRESP
        assert bodies(sink) == ["unanswered"]
        sink.tell("set", "no-ack", "off")
        client.publish(2)
        assert client.ids(1) == [2]


def test_reorder_acks_sends_the_last_one_first(sinks):
    sink = sinks("--reorder-acks", "--ack-after", 4)
    with raw(sink) as client:
        for number in range(1, 5):
            client.publish(number)
        assert client.ids(4) == [4, 3, 2, 1]


def test_duplicate_acks_answers_twice(sinks):
    sink = sinks("--duplicate-acks")
    with raw(sink) as client:
        client.publish(1)
        client.publish(2)
        assert client.ids(4) == [1, 1, 2, 2]
        assert sink.stats()["acks"] == 2


def test_reject_gives_its_code_and_records_nothing(sinks):
    sink = sinks("--reject", "0x97", "--reason", "no quota")
    with raw(sink, 5) as client:
        client.publish(1)
        _, _, body = client.receive()
        assert body == b"\x00\x01\x97" + length(11) + b"\x1f" + text("no quota")
        client.publish(2, qos=2)
        kind, _, body = client.receive()
        assert (kind, body[2]) == (PUBREC, 0x97)
        sink.tell("set", "reject", "0x10")  # no subscribers: a success
        client.publish(3, "kept")
        assert client.receive()[2][:3] == b"\x00\x03\x10"
    assert bodies(sink) == ["kept"]
    assert sink.stats()["rejected"] == 2


def test_reject_closes_where_the_protocol_has_no_no(sinks):
    sink = sinks("--reject", "0x97")
    with raw(sink, 4) as client:
        client.publish(1)
        assert client.end() == ("fin", b"")
    assert sink.arrivals() == []


def test_reject_every_and_reject_topic_pick(sinks):
    sink = sinks("--reject-every", 3)
    with raw(sink, 5) as client:
        for number in range(1, 7):
            client.publish(number)
        assert client.acks(6) == [(1, 0), (2, 0), (3, 0x87), (4, 0), (5, 0), (6, 0x87)]
        sink.tell("set", "reject-every", "0")
        sink.tell("set", "reject-topic", "bad/*")
        for number, topic in enumerate(("good", "bad/one", "bad"), 1):
            client.publish(number, topic=topic)
        assert client.acks(3) == [(1, 0), (2, 0x87), (3, 0)]
        sink.tell("set", "reject-topic", "")
        client.publish(9, topic="bad/one")
        assert client.acks(1) == [(9, 0)]


# --- silence ---


def test_stall_after_closes_the_window_until_resume(sinks):
    sink = sinks("--stall-after", 3, "--receive-buffer", 8192)
    with raw(sink) as client:
        message = publish_packet(4, 1, "x" * 1000)
        sent = client.send_until_full(message)
        assert client.ids(3) == [1, 1, 1]
        while more := client.send_until_full(message, sent):
            sent += more
        stats = sink.stats()
        assert stats["messages"] == 3 and stats["per_connection"][0]["stalled"]
        sink.tell("resume")
        assert client.ids(3) == [1, 1, 1]
        wait_stats(sink, messages=6)
        sink.tell("set", "stall-after", "0")
        client.ids(10)


def test_stall_goes_on_answering_read_messages(sinks):
    sink = sinks("--ack-after", 2)
    with raw(sink) as client:
        client.publish(1)
        wait_stats(sink, messages=1)
        sink.tell("set", "stall")
        client.publish(2)
        sink.tell("set", "ack-after", "0")
        assert client.ids(1) == [1]
        assert sink.stats()["messages"] == 1
        sink.tell("resume")
        assert client.ids(1) == [2]


def test_freeze_stops_everything_and_loses_nothing(sinks):
    sink = sinks("--ack-delay", 50)
    with raw(sink) as client:
        client.publish(1)
        wait_stats(sink, messages=1)
        sink.tell("set", "freeze")
        client.publish(2)
        client.ping()
        late = raw(sink, connect=False)  # the kernel takes it, the sink does not
        late.send(connect_packet())
        before = sink.stats()
        assert before["messages"] == 1 and before["acks"] == 0 and before["pings"] == 0
        assert client.nothing_waits() and late.nothing_waits()
        sink.tell("resume")
        assert late.receive()[0] == CONNACK
        first = client.receive()
        assert first[0] in (PINGRESP, 4)
        wait_stats(sink, messages=2, acks=2, pings=1)
        late.socket.close()
    assert bodies(sink) == ["body", "body"]


def test_mute_reads_and_answers_nothing(sinks):
    sink = sinks()
    with raw(sink) as client:
        sink.tell("set", "mute")
        client.publish(1, "heard")
        client.ping()
        wait_stats(sink, messages=1, pings=1)
        assert sink.stats()["acks"] == 0
        assert client.nothing_waits()
        sink.tell("set", "mute", "off")
        client.publish(2)
        assert client.ids(1) == [2]
    assert bodies(sink) == ["heard", "body"]


def test_mute_does_not_answer_a_connect(sinks):
    sink = sinks("--mute")
    with raw(sink, connect=False) as client:
        client.send(connect_packet())
        client.ping()
        wait_stats(sink, pings=1)
        sink.stats()
        assert client.nothing_waits()


def test_no_pong_answers_messages_only(sinks):
    sink = sinks("--no-pong")
    with raw(sink) as client:
        client.ping()
        client.publish(1)
        assert client.ids(1) == [1]
        assert sink.stats()["pings"] == 1


def test_read_rate_is_kept(sinks):
    import time
    sink = sinks("--read-rate", 20000)
    with raw(sink) as client:
        start = time.monotonic()
        for number in range(1, 11):
            client.publish(number, b"x" * 1000)
        client.ids(10)
        took = time.monotonic() - start
    # 10 kB at 20 kB/s, less the first twentieth of a second's worth.
    assert 0.4 < took < 0.5 + 3 * PATIENCE
    assert len(bodies(sink)) == 10


# --- endings ---


@pytest.mark.parametrize("version", VERSIONS)
def test_close_after_answers_then_closes_in_good_order(sinks, version):
    sink = sinks("--close-after", 2)
    with raw(sink, version) as client:
        client.send(b"".join(publish_packet(version, i) for i in range(1, 6)))
        assert client.ids(2) == [1, 2]
        assert client.end() == ("fin", b"")
    assert len(bodies(sink)) == 2


def test_reset_after_resets_and_loses_the_answers(sinks):
    sink = sinks("--reset-after", 2)
    with raw(sink) as client:
        client.send(publish_packet(4, 1) + publish_packet(4, 2))
        how, before = client.end()
        assert how == "rst" and len(before) <= 4
    assert len(bodies(sink)) == 2


def test_close_reset_and_disconnect_now(sink):
    with raw(sink) as client:
        sink.tell("close")
        assert client.end() == ("fin", b"")
    with raw(sink) as client:
        sink.tell("reset")
        assert client.end()[0] == "rst"
    with raw(sink, 5) as client:
        sink.tell("disconnect", "0x8b")
        kind, _, body = client.receive()
        assert (kind, body[0]) == (DISCONNECT, 0x8B)
        assert client.end() == ("fin", b"")
    wait_for(lambda: sink.stats()["connections"] == 0, "all connections to be gone")


# --- connecting ---


@pytest.mark.parametrize("version,code", [(4, 3), (5, 0x88)])
def test_connack_refuses(sinks, version, code):
    sink = sinks("--connack", code)
    with raw(sink, version) as client:
        assert client.connack[1] == code
        assert client.end() == ("fin", b"")
    assert sink.stats()["connections_refused"] == 1


@pytest.mark.parametrize("version,code", [(4, 4), (5, 0x86)])
def test_auth_wants_user_and_password(sinks, box, version, code):
    (box.path / "pw").write_text("geheim\n")
    sink = sinks("--auth", f"u:{box.path / 'pw'}")
    for user, password, expected in (("u", "geheim", 0), ("u", "wrong", code), ("v", "geheim", code), (None, None, code),
                                     ("u", None, code)):
        with raw(sink, version, user=user, password=password) as client:
            assert client.connack[1] == expected, (user, password)
    assert "geheim" not in sink.tell("get") + sink.process.text()


def test_never_accept_leaves_clients_in_the_queue(sinks):
    sink = sinks()
    sink.tell("set", "never-accept")
    before = sink.stats()["connections_ever"]
    with raw(sink, connect=False) as client:
        client.send(connect_packet())  # the kernel acknowledges it
        assert sink.stats()["connections_ever"] == before
        assert client.nothing_waits()
        sink.tell("set", "never-accept", "off")
        assert client.receive()[0] == CONNACK


def test_refuse_refuses_until_listen(sink):
    sink.tell("set", "refuse")
    with pytest.raises(ConnectionRefusedError):
        raw(sink)
    sink.tell("listen")
    with raw(sink) as client:
        client.publish(1)
        assert client.ids(1) == [1]


def test_refuse_from_the_start_keeps_its_port(box):
    sink = Sink(box, "refusing", options=["--refuse"])
    sink.process = Process(box, "refusing", sink.argv())
    wait_for(lambda: "listening control" in sink.process.text(), "the control channel")
    assert not listens(sink.port)
    sink.tell("listen")
    assert listens(sink.port)


def test_max_connections_closes_the_next(sinks):
    sink = sinks()
    wait_for(lambda: sink.stats()["connections"] == 0, "the first look at the port to be over")
    sink.tell("set", "max-connections", "1")
    with raw(sink) as client:
        with raw(sink, connect=False) as late:
            assert late.end()[0] == "fin"
        client.publish(1)
        assert client.ids(1) == [1]


def test_garbage_greets_and_is_the_same_for_a_seed(sinks):
    greetings = []
    for _ in range(2):
        sink = sinks("--seed", 7)
        sink.tell("set", "garbage", "64")
        with raw(sink, connect=False) as client:
            wait_stats(sink, connections=1)
            greeting = b""
            while len(greeting) < 64:
                greeting += client.socket.recv(64 - len(greeting))
            greetings.append(greeting)
            sink.tell("garbage", "5")
            assert client.socket.recv(100)
    assert greetings[0] == greetings[1] and len(set(greetings[0])) > 20


# --- limits ---


def test_limits_are_announced_and_kept(sinks):
    sink = sinks("--receive-maximum", 2, "--max-packet", 200, "--maximum-qos", 1, "--topic-aliases", 0, "--no-ack",
                 "--server-keepalive", 77)
    with raw(sink, 5, client="") as client:
        properties = client.connack[3:]
        for announced in (b"\x21\x00\x02", b"\x24\x01", b"\x27\x00\x00\x00\xc8", b"\x13\x00\x4d", b"\x12" + text("sink-2")):
            assert announced in properties
        for number in (1, 2, 3):
            client.publish(number)
        kind, _, body = client.receive()
        assert (kind, body[0]) == (DISCONNECT, 0x93)
    for message, code in ((publish_packet(5, 1, "x" * 300), 0x95), (publish_packet(5, 1, qos=2), 0x9B),
                          (publish_packet(5, 1, properties=b"\x23\x00\x01"), 0x94)):
        with raw(sink, 5) as client:
            client.send(message)
            kind, _, body = client.receive()
            assert (kind, body[0]) == (DISCONNECT, code)
            assert client.end()[0] == "fin"


MALFORMED = {
    "first packet is no CONNECT": (None, b"\xc0\x00"),
    "not MQTT": (None, packet(0x10, text("HTTP") + b"\x04\x02\x00\x00\x00\x00")),
    "reserved connect flag": (None, connect_packet(4, flags=3)),
    "connect cut short": (None, packet(0x10, text("MQTT") + b"\x04\x02")),
    "connect with a tail": (None, packet(0x10, connect_packet(4)[2:] + b"x")),
    "length of five bytes": (4, b"\x30\xff\xff\xff\xff\x01"),
    "second connect": (4, connect_packet(4)),
    "qos 3": (4, packet(0x36, text("t") + b"\x00\x01x")),
    "dup with qos 0": (4, packet(0x38, text("t") + b"x")),
    "packet id 0": (4, publish_packet(4, 0)),
    "no packet id": (4, packet(0x32, text("t"))),
    "wildcard topic": (4, publish_packet(4, 1, topic="a/#")),
    "plus in topic": (5, publish_packet(5, 1, topic="a/+/b")),
    "empty topic": (4, publish_packet(4, 1, topic="")),
    "empty topic, no alias": (5, publish_packet(5, 1, topic="")),
    "topic not utf-8": (4, publish_packet(4, 1, topic=b"\xff")),
    "topic overlong utf-8": (4, publish_packet(4, 1, topic=b"\xc0\x80")),
    "topic with a surrogate": (4, publish_packet(4, 1, topic=b"\xed\xa0\x80")),
    "topic with nul": (4, publish_packet(4, 1, topic=b"a\0b")),
    "topic longer than the packet": (4, packet(0x30, b"\x00\x09abc")),
    "unknown property": (5, publish_packet(5, 1, properties=b"\x7f")),
    "property of connack": (5, publish_packet(5, 1, properties=b"\x12\x00\x00")),
    "property twice": (5, publish_packet(5, 1, properties=b"\x01\x00\x01\x00")),
    "property cut short": (5, publish_packet(5, 1, properties=b"\x26\x00")),
    "properties longer than the packet": (5, packet(0x32, text("t") + b"\x00\x01\x7f")),
    "alias 0": (5, publish_packet(5, 1, properties=b"\x23\x00\x00")),
    "pubrel flags": (4, packet(0x60, b"\x00\x01")),
    "puback from a client": (4, packet(0x40, b"\x00\x01")),
    "type 15 in 3.1.1": (4, packet(0xF0, b"")),
    "ping with a body": (4, packet(0xC0, b"x")),
    "subscribe to nothing": (5, packet(0x82, b"\x00\x01\x00")),
}


@pytest.mark.sanitizers
@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_clients_are_closed_and_logged(sink, name):
    version, data = MALFORMED[name]
    with raw(sink) as other:
        with raw(sink, version or 4, connect=version is not None) as client:
            client.send(data)
            how, rest = client.end()
            assert how == "fin"
            assert (rest[:1] == b"\xe0") == (version == 5)
        wait_for(lambda: "level=warn" in sink.process.text(), "the log line")
        other.publish(1)
        assert other.ids(1) == [1]
    assert sink.stats()["malformed"] == 1


@pytest.mark.parametrize("level,code", [(3, 1), (6, 0x84)])
def test_other_versions_are_refused_with_the_code_for_it(sink, level, code):
    with raw(sink, 4, level=level) as client:
        assert client.connack[1] == code
        assert client.end()[0] == "fin"


@pytest.mark.sanitizers
def test_random_bytes_never_end_the_sink(sink):
    import random
    source = random.Random(5)
    valid = publish_packet(5, 1, "b" * 50, topic="a/b", properties=user_property("a", "b") + b"\x02\x00\x00\x00\x09")
    for turn in range(300):
        version = source.choice(VERSIONS)
        with raw(sink, version, connect=turn % 3 != 0) as client:
            data = bytearray(valid * 4) if turn % 2 else bytearray(source.randbytes(200))
            for _ in range(source.randrange(4)):
                data[source.randrange(len(data))] = source.randrange(256)
            try:
                client.send(bytes(data))
                client.socket.shutdown(socket.SHUT_WR)
                client.end()
            except (BrokenPipeError, ConnectionResetError, OSError):
                pass
    with raw(sink) as client:
        client.publish(1)
        assert client.ids(1) == [1]


# --- the record ---


def test_full_disk_stops_the_answers_and_fails_in_the_end(box):
    sink = Sink(box, "full")
    sink.record = "/dev/full"
    sink.start()
    with raw(sink) as client:
        client.publish(1)
        client.ping()
        assert client.receive()[0] == PINGRESP
        client.publish(2)
        client.ping()
        assert client.receive()[0] == PINGRESP
        stats = sink.stats()
        assert (stats["messages"], stats["acks"], stats["recorded"]) == (2, 0, 0)
        assert stats["record_error"] == "No space left on device"
    assert sink.stop() == 1
    assert "No space left on device" in sink.process.text()


def test_a_record_that_fills_up_keeps_whole_lines_of_all_that_was_answered(box):
    sink = Sink(box, "limited")
    limit = 100000
    sink.process = Process(box, "limited", sink.argv(),
                           preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    wait_for(lambda: listens(sink.port), "the sink to listen")
    with raw(sink) as client:
        answered = 0
        for number in range(1, 400):
            client.publish(number, f"{number:04d}" + "x" * 996)
            client.ping()
            if client.receive()[0] == PINGRESP:
                break
            assert client.receive()[0] == PINGRESP
            answered += 1
    assert 50 < answered < 100
    data = sink.record.read_bytes()
    assert len(data) <= limit and data.endswith(b"\n")
    assert [body[:4] for body in bodies(sink)] == [f"{n:04d}" for n in range(1, answered + 1)]
    assert sink.stop() == 1


# --- options, control, documents ---


@pytest.mark.parametrize("words,parts", [
    (["--ack-delay", "x"], ["--ack-delay", '"x"', "0 to 3600000"]),
    (["--ack-delay", "-1"], ["--ack-delay", '"-1"', "0 to 3600000"]),
    (["--maximum-qos", "3"], ["--maximum-qos", '"3"', "0 to 2"]),
    (["--protocol", "smoke"], ["--protocol", '"smoke"', "mqtt"]),
    (["--record-format", "xml"], ["--record-format", '"xml"', "full or body"]),
    (["--listen"], ["--listen", "needs a value"]),
    (["--bogus"], ["--bogus"]),
    (["--protocol", "mqtt", "--listen", "1.2.3.4", "--no-record"], ['"1.2.3.4"', "HOST:PORT"]),
    (["--protocol", "mqtt", "--listen", "127.0.0.1:65536", "--no-record"], ["65536", "65535"]),
    (["--protocol", "mqtt", "--listen", "::1:5", "--no-record"], ['"::1:5"', "[V6]:PORT"]),
    (["--protocol", "mqtt", "--listen", "127.0.0.1:0"], ["--record", "--no-record"]),
    (["--protocol", "mqtt", "--listen", "127.0.0.1:0", "--no-record", "--record", "x"], ["--record", "--no-record"]),
    (["--listen", "127.0.0.1:0", "--no-record"], ["--protocol"]),
    (["--auth", "nobody"], ["auth", '"nobody"', "USER:FILE"]),
    (["--auth", "u:/nonexistent"], ["auth", '"/nonexistent"', "No such file"]),
    (["stray"], ['"stray"']),
    (["--tell", "unix:/x"], ["--tell", "command"]),
    (["--tell", "/x", "stats"], ['"/x"', "unix:/PATH"]),
])
def test_bad_options_name_option_value_and_what_is_allowed(box, words, parts):
    result = box.run(program("tidegate-sink"), *words)
    assert result.returncode == 2
    assert result.stdout == ""
    for part in parts:
        assert part in result.stderr


def test_control_answers_each_line_with_one(sink):
    with socket.socket(socket.AF_UNIX) as control:
        control.settimeout(10)
        wait_for(lambda: control.connect_ex(str(sink.control)) == 0, "the control socket")
        control.sendall(b"set ack-delay 5\nset ack-delay soon\r\nget ack-delay\nset freeze maybe\nfly\nset\nresume now\n"
                        b"get nothing\nhelp\nquit\n")
        answers = control.makefile().read().splitlines()
    assert answers[0] == "ok" and answers[2] == "5" and answers[9] == "ok" and len(answers) == 10
    for index, words in ((1, '"soon"'), (3, "on or off"), (4, '"fly"'), (5, "no option"), (6, "no argument"), (7, '"nothing"')):
        assert answers[index].startswith("error ") and words in answers[index]
    assert sink.process.wait() == 0


def test_control_bounds_its_lines(sink):
    with socket.socket(socket.AF_UNIX) as control:
        control.settimeout(10)
        control.connect(str(sink.control))
        control.sendall(b"x" * 9000)
        assert b"at most" in control.makefile("rb").readline()


def test_tell_fails_without_a_sink_or_when_the_answer_is_an_error(box, sink):
    assert box.run(program("tidegate-sink"), "--tell", f"unix:{box.path}/none", "stats").returncode == 1
    assert box.run(program("tidegate-sink"), "--tell", f"unix:{sink.control}", "set", "mute", "x").returncode == 1
    assert box.run(program("tidegate-sink"), "--tell", f"unix:{sink.control}", "get", "mute").stdout == "false\n"


def test_manual_and_completion_have_every_option_and_command(box):
    text = box.run(program("tidegate-sink"), "--help").stdout
    manual = (ROOT / "tools/man/tidegate-sink.1").read_text()
    options = re.findall(r"^  --([a-z0-9-]+)", text, re.M)
    commands = re.findall(r"^  ([a-z]+) ", text, re.M)
    assert len(options) > 30 and "stats" in commands
    for name in options:
        assert f".It Fl -{name}" in manual, name
    for name in commands:
        assert f".It Ic {name}" in manual, name
    script = (f"PATH={BUILD}/tools/sink:$PATH; source {ROOT}/tools/completion/tidegate-sink; COMP_WORDS=(tidegate-sink --); "
              "COMP_CWORD=1; _tidegate_sink tidegate-sink; printf '%s\\n' \"${COMPREPLY[@]}\"")
    completed = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert sorted(completed) == sorted(f"--{name}" for name in options)


# --- load ---


@pytest.mark.sanitizers
def test_many_connections_at_once_keep_their_order(sink):
    count, each = 40, 200

    def run(which, failures):
        try:
            with raw(sink, VERSIONS[which % 2], patience=30) as client:
                client.send(b"".join(publish_packet(client.version, i, f"{which}-{i}") for i in range(1, each + 1)))
                assert client.ids(each) == list(range(1, each + 1))
        except Exception as error:  # a thread's exception would be lost
            failures.append(error)

    failures = []
    threads = [threading.Thread(target=run, args=(which, failures)) for which in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    found = {}
    for row in sink.arrivals():
        which, number = row["body"].split("-")
        found.setdefault(which, []).append(int(number))
    assert found == {str(which): list(range(1, each + 1)) for which in range(count)}


def test_out_of_descriptors_waits_and_recovers(box):
    sink = Sink(box, "poor")
    sink.process = Process(box, "poor", sink.argv(),
                           preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16)))
    wait_for(lambda: listens(sink.port), "the sink to listen")
    clients = [raw(sink, connect=False) for _ in range(20)]
    wait_for(lambda: "trying again" in sink.process.text(), "the sink to run out of descriptors")
    for client in clients:
        client.socket.close()
    with raw(sink) as client:
        client.publish(1)
        assert client.ids(1) == [1]


def test_a_client_that_reads_no_answers_is_not_read_from(sink):
    with raw(sink, receive_buffer=4096) as client:
        ping = b"\xc0\x00" * 32768
        total = 0
        for _ in range(2000):
            sent = client.send_until_full(ping, total)
            total += sent
            if sent == 0 and sink.stats()["per_connection"][0]["unsent"] >= 4 << 20:
                break
        else:
            raise AssertionError(f"{total} bytes were taken and nothing stopped it")
        assert sink.process.rss_kib() < 64 << 10
        # … and goes on when they are read: a PINGRESP for each PINGREQ that was sent whole.
        left = total // 2 * 2
        while left > 0:
            left -= len(client.socket.recv(1 << 20))
        assert left == 0
