"""A client that publishes harmful messages, run as a program: `bad_neighbour.py JSON`, whose keys are Spec's fields.

It publishes `messages` in turn, so many a second, until SIGTERM; then it waits for the completions it is owed. Each
message accepted, each refused by the library and each completion is one line of JSON in `out`, written at once. The
first line says that the program is ready. Its good messages (`good` of them between bad ones, to `good_topic`) have a
load program's body.
"""

import ctypes
import dataclasses
import json
import os
import signal
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

NOBODY = 65534
PUBLISHED_BY = 90  # the producer's number in the bodies of its good messages


@dataclasses.dataclass
class Message:
    """topic, and a body of `size` bytes; headers by name."""
    topic: str
    size: int = 8
    headers: dict = dataclasses.field(default_factory=dict)
    key: str = ""
    flags: int = 0


@dataclasses.dataclass
class Spec:
    socket: str = ""
    out: str = ""
    messages: list = dataclasses.field(default_factory=list)
    rate: float = 5        # bad messages a second
    burst: int = 1         # of them at once
    most: int = 1 << 30    # bad messages in all
    good: int = 0          # good messages before each burst
    good_topic: str = ""
    fresh: str = "none"    # "lane", "process": a new one for each burst
    timeout_ms: int = 4000
    patience_s: float = 20 # beyond timeout_ms, after SIGTERM, for the last completion
    pool: str = "events"
    ring_bytes: int = 0


class Bad:
    def __init__(self, spec):
        from tidegate_lib import Client, Header, TideError, load  # pylint: disable=import-outside-toplevel
        load()  # while it may be read
        self.spec, self.Header, self.Error, self.Client = spec, Header, TideError, Client
        self.log = os.open(spec.out, os.O_WRONLY | os.O_APPEND)
        self.messages = [Message(**m) for m in spec.messages]
        self.stopping = False
        self.count = self.bad = self.goods = 0
        self.lanes = []  # [lane, {tag: kind} of what is outstanding, whether it is done with]
        signal.signal(signal.SIGTERM, self.stop)
        self.say(ready=os.getpid())

    def stop(self, *_):
        self.stopping = True

    def say(self, **what):
        os.write(self.log, json.dumps(what).encode() + b"\n")

    def lane(self):
        if not self.lanes or self.spec.fresh == "lane":
            for one in self.lanes:
                one[2] = True
            self.lanes.append([self.client.lane(self.spec.pool, ring_bytes=self.spec.ring_bytes), {}, False])
        return self.lanes[-1]

    def publish(self, lane, kind, topic, body, message=None):
        m = lane[0].message(body, topic=topic.encode(), timeout_ms=self.spec.timeout_ms)
        self.count += 1
        m.tag = self.count
        if message is not None:
            m.flags = message.flags
            m.key, m.key_len = message.key.encode(), len(message.key)
            m.headers = (self.Header * len(message.headers))(*(
                self.Header(n.encode(), v.encode(), len(n), len(v)) for n, v in message.headers.items()))
            m.header_count = len(message.headers)
        try:
            self.client.check(lane[0].lib.tg_publish(lane[0].handle, ctypes.byref(m), None))
        except self.Error as e:
            self.say(pid=os.getpid(), refused=kind, error=e.code, words=str(e))
            return
        lane[1][self.count] = kind
        self.say(pid=os.getpid(), accepted=kind, tag=self.count)

    def burst(self):
        lane = self.lane()
        for _ in range(self.spec.good):
            self.publish(lane, "good", self.spec.good_topic, b"%d 0 %d" % (PUBLISHED_BY, self.goods))
            self.goods += 1
        for _ in range(self.spec.burst):
            message = self.messages[self.bad % len(self.messages)]
            self.publish(lane, "bad", message.topic, (b"%d %d " % (os.getpid(), self.bad)).ljust(message.size, b"x"), message)
            self.bad += 1

    def take(self):
        for lane in list(self.lanes):
            for c in lane[0].poll():
                kind = lane[1].pop(c.tag, "stranger")
                words = lane[0].reason() if c.name != "delivered" else ("", 0)
                self.say(pid=os.getpid(), completed=kind, tag=c.tag, outcome=c.name, code=c.code, attempts=c.attempts,
                         words=words[0], ms=c.elapsed_us // 1000)
            if lane[2] and not lane[1]:
                lane[0].close(0)
                self.lanes.remove(lane)

    def settle(self):
        end = time.monotonic() + self.spec.timeout_ms / 1000 + self.spec.patience_s
        while any(lane[1] for lane in self.lanes) and time.monotonic() < end:
            self.take()
            time.sleep(0.005)

    def run(self):
        if self.spec.fresh != "process":
            self.client = self.Client(self.spec.socket, "bad")
        start = time.monotonic()
        while not self.stopping and self.bad < self.spec.most:
            if self.bad <= (time.monotonic() - start) * self.spec.rate:
                if self.spec.fresh == "process":
                    self.child()
                else:
                    self.burst()
            if self.spec.fresh != "process":
                self.take()
            time.sleep(0.002)
        if self.spec.fresh == "process":
            while True:
                try:
                    os.wait()
                except ChildProcessError:
                    return
        self.settle()
        self.client.close()

    def child(self):
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            self.client = self.Client(self.spec.socket, "bad")
            self.burst()
            self.settle()
            self.client.close()
            os._exit(0)
        self.bad += self.spec.burst


def main():
    spec = Spec(**json.loads(sys.argv[1]))
    bad = Bad(spec)
    if os.geteuid() == 0:  # its modules are loaded; from here on it has the rights of any account
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    bad.run()


if __name__ == "__main__":
    main()
