"""tidegate-sink's --faults and --mqtt5: a broker that means one message, and says so in each protocol's bad manner."""

import socket

import pytest

from harness import PATIENCE, Sink
from raw_mqtt import PINGRESP, connect_packet, publish_packet
from test_sink import bodies, raw, sinks  # noqa: F401 (a fixture)


@pytest.mark.parametrize("version,how,answers,end", [
    (5, "close", [(1, 0)], ("fin", b"")),
    (4, "close", [(1, 0)], ("fin", b"")),
    (5, "reset", [], ("rst", b"")),
    (5, "error:0x97", [(1, 0)], ("fin", b"\xe0\x02\x97\x00")),
    (4, "error:0x97", [(1, 0)], ("fin", b"")),
    (5, "both", [(1, 0), (2, 0x87)], ("fin", b"\xe0\x02\x87\x00")),
    (5, "trail:0x99", [(1, 0)], ("fin", b"\xe0\x02\x99\x00" + b"\x40\x03\x00\x03\x99")),
])
def test_a_message_that_a_rule_picks_ends_its_connection(sinks, version, how, answers, end):
    sink = sinks("--faults", f"bad/*={how}")
    with raw(sink, version) as client:
        packets = b""
        for number, topic in enumerate(("good", "bad/one", "good"), 1):
            packets += publish_packet(version, number, f"body {number}", topic=topic)
        client.send(packets)
        if answers:
            assert client.acks(len(answers)) == answers
        assert client.end() == end
    assert bodies(sink) == ["body 1"]
    assert sink.stats()["faulted"] == 1


def test_a_message_can_be_refused_alone_or_never_answered(sinks):
    sink = sinks("--faults", "bad/*=reject:0x90,quiet=silent,>1000=reject:0x97")
    with raw(sink, 5) as client:
        for number, (topic, size) in enumerate((("bad/one", 1), ("quiet", 1), ("good", 1001), ("good", 1000)), 1):
            client.publish(number, "x" * size, topic=topic)
        assert client.acks(3) == [(1, 0x90), (3, 0x97), (4, 0)]
        client.ping()
        assert client.receive()[0] == PINGRESP
        sink.tell("set", "faults")
        client.publish(9, topic="bad/one")
        assert client.acks(1) == [(9, 0)]


@pytest.mark.parametrize("rules,what", [
    ("bad/*", "want PATTERN=HOW"),
    ("a=b", "unknown HOW"),
    ("a=close,b=error:0", "its code is no number"),
    (">x=close", "no number of bytes"),
])
def test_rules_that_make_no_sense_are_named(sinks, rules, what):
    sink = sinks()
    answer = sink.box.run(*sink.argv()[:1], "--tell", f"unix:{sink.control}", "set", "faults", rules)
    assert answer.returncode == 1
    assert "faults: \"" in answer.stdout + answer.stderr and what in answer.stdout + answer.stderr
    assert sink.tell("get", "faults").strip() == "null"


@pytest.mark.parametrize("how,answer", [
    ("refused", b"\x20\x03\x00\x84\x00"),
    ("refused-as-311", b"\x20\x02\x00\x01"),
    ("closed", b""),
])
def test_a_sink_can_be_a_broker_of_version_3_1_1_only(sinks, how, answer):
    sink = sinks("--mqtt5", how)
    with raw(sink, 5, connect=False) as client:
        client.send(connect_packet(5))
        assert client.end() == ("fin", answer)
    with raw(sink, 4) as client:
        client.publish(1)
        assert client.ids(1) == [1]
    assert sink.tell("get", "mqtt5").strip() == f'"{how}"'


def test_a_connect_of_version_5_can_stay_without_answer(sinks):
    sink = sinks("--mqtt5", "unanswered")
    with raw(sink, 5, connect=False) as client:
        client.send(connect_packet(5))
        client.ping()  # … which is what is answered
        assert client.receive()[0] == PINGRESP


def stomp(sink):
    connection = socket.create_connection(("127.0.0.1", sink.port), 10 * PATIENCE)
    connection.sendall(b"CONNECT\naccept-version:1.2\nhost:x\n\n\0")
    assert connection.recv(65536).startswith(b"CONNECTED\n")
    return connection


def read_all(connection):
    data = b""
    while more := connection.recv(65536):
        data += more
    return [frame.lstrip(b"\n") for frame in data.split(b"\0") if frame.strip()]


@pytest.mark.parametrize("how,frames", [
    ("close", [b"RECEIPT\nreceipt-id:1\n\n"]),
    ("error:7", [b"RECEIPT\nreceipt-id:1\n\n", b"ERROR\ncontent-type:text/plain\nmessage:closed with code 7\n\nclosed with code 7"]),
    ("both", [b"RECEIPT\nreceipt-id:1\n\n", b"ERROR\ncontent-type:text/plain\nreceipt-id:2\nmessage:rejected\n\nrejected",
              b"ERROR\ncontent-type:text/plain\nmessage:closed with code 1\n\nclosed with code 1"]),
    ("trail", [b"RECEIPT\nreceipt-id:1\n\n", b"ERROR\ncontent-type:text/plain\nmessage:closed with code 1\n\nclosed with code 1",
               b"ERROR\ncontent-type:text/plain\nreceipt-id:3\nmessage:rejected\n\nrejected"]),
])
def test_stomp_says_it_in_its_own_words(box, how, frames):
    sink = Sink(box, "stomp", protocol="stomp", options=["--faults", f"bad/*={how}"]).start()
    with stomp(sink) as connection:
        connection.sendall(b"".join(f"SEND\ndestination:{topic}\nreceipt:{number}\n\nbody {number}\0".encode()
                                    for number, topic in enumerate(("good", "bad/one", "good"), 1)))
        assert read_all(connection) == frames
    assert bodies(sink) == ["body 1"]
