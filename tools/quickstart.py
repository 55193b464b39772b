#!/usr/bin/python3
"""The demonstration that tools/quickstart builds and starts.

Two brokers, one tidegated, 4 producers. Some of the messages are published at a steady rate, so
that a broker can be frozen and resumed while they flow; the rest follows at full speed. Then the brokers'
records are compared, line by line, with the published lines.
"""

import argparse
import collections
import ctypes
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

PRODUCERS = 4
MESSAGES = 1000000
STEADY_S = 14.0    # how long the steady part takes
STEADY_MAX = 50000 # messages in it
FREEZE_AT = 0.25   # of it
FROZEN_S = 5.0
LIMIT_S = 120.0    # of every wait
POOL = "quickstart"
CONFIG = """# The configuration of tools/quickstart.
socket = "{sockets}/tidegate.sock";
admin = "{sockets}/admin.sock";
pools = ( {{
  name = "{pool}"; protocol = "mqtt"; balance = "weighted"; order = "lane"; on_failure = "resend";
  brokers = ( {{ address = "{brokers[0].address}"; }}, {{ address = "{brokers[1].address}"; }} );
  # Short timeouts, so that changes show within seconds.
  health = {{ idle_ms = 300; probe_timeout_ms = 300; probe_misses = 2; ack_timeout_ms = 1000; stall_timeout_ms = 2500; }};
  breaker = {{ retry_ms = 200; retry_max_ms = 1000; slow_start_ms = 1000; }};
  mqtt = {{ version = 5; qos = 1; }};
}} );
"""


def end_with_parent():
    """In the child: if this script is killed, so is everything it started."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Failure(Exception):
    pass


class Running:
    """Everything started; ended by its own pid, last first."""

    def __init__(self):
        self.all = []

    def start(self, argv, log, **options):
        with open(log, "ab") as out:
            process = subprocess.Popen([str(word) for word in argv], stdin=subprocess.DEVNULL,
                                       stdout=options.pop("stdout", out), stderr=out, preexec_fn=end_with_parent)
        process.log = log
        self.all.append(process)
        return process

    def end(self, process):
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def end_all(self):
        for process in reversed(self.all):
            self.end(process)


def wait_for(condition, what, limit_s=LIMIT_S):
    end = time.monotonic() + limit_s
    while not (value := condition()):
        if time.monotonic() > end:
            raise Failure(f"{what}: not within {limit_s:.0f} s")
        time.sleep(0.02)
    return value


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def answers(port):
    with socket.socket() as s:
        s.settimeout(1)
        return s.connect_ex(("127.0.0.1", port)) == 0


class Broker:
    """A broker and its record: one line for each message that reached it."""

    def __init__(self, letter, folder):
        self.letter = letter
        self.folder = folder
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.record = folder / f"{letter}.record"
        self.process = None
        self.seen_bytes = 0
        self.arrived = 0

    def count(self):
        """How many lines the record has; reads only what is new."""
        if self.record.exists():
            with open(self.record, "rb") as file:
                file.seek(self.seen_bytes)
                while chunk := file.read(1 << 20):
                    self.seen_bytes += len(chunk)
                    self.arrived += chunk.count(b"\n")
        return self.arrived

    def lines(self):
        """Every whole line of the record, as it was published."""
        return self.record.read_bytes().split(b"\n")[:-1]

    def freeze(self):
        self.process.send_signal(signal.SIGSTOP)

    def resume(self):
        self.process.send_signal(signal.SIGCONT)


ESCAPED = re.compile(rb"\\(x[0-9a-f]{2}|.)")
ESCAPES = {b"t": b"\t", b"n": b"\n", b"r": b"\r", b"\\": b"\\"}


class Sink(Broker):
    kind = "tidegate-sink"

    def lines(self):
        """The sink writes control characters and backslashes as escapes."""
        def unescape(match):
            code = match.group(1)
            return ESCAPES.get(code) or bytes([int(code[1:], 16)])
        return [ESCAPED.sub(unescape, line) if b"\\" in line else line for line in super().lines()]

    def start(self, running, programs):
        self.process = running.start([programs["tidegate-sink"], "--protocol", "mqtt", "--listen", self.address,
                                      "--record", self.record, "--record-format", "body"],
                                     self.folder / f"{self.letter}.log")
        wait_for(lambda: answers(self.port) or self.process.poll() is not None, f"broker {self.letter} to listen", 10)


class Mosquitto(Broker):
    kind = "mosquitto"

    def start(self, running, _programs):
        config = self.folder / f"{self.letter}.conf"
        log = self.folder / f"{self.letter}.log"
        config.write_text(f"listener {self.port} 127.0.0.1\nallow_anonymous true\nuser root\nlog_dest stderr\n"
                          "log_type error\nlog_type subscribe\nmax_queued_messages 0\nmax_inflight_messages 0\n")
        server = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
        self.process = running.start([server, "-c", config], log)
        wait_for(lambda: answers(self.port) or self.process.poll() is not None, f"broker {self.letter} to listen", 10)
        with open(self.record, "wb") as record:
            running.start(["mosquitto_sub", "-h", "127.0.0.1", "-p", self.port, "-i", f"recorder-{self.letter}",
                           "-q", 1, "-t", "#"], self.folder / f"{self.letter}-recorder.log", stdout=record)
        wait_for(lambda: f"recorder-{self.letter}" in log.read_text(), f"the recorder on {self.letter}", 10)


class Screen:
    """One line that is written over itself on a terminal, once a second elsewhere; events stay."""

    def __init__(self):
        self.live = sys.stdout.isatty()
        self.start = time.monotonic()
        self.last = 0.0

    def progress(self, text):
        now = time.monotonic()
        if self.live:
            print(f"\r\x1b[K  {now - self.start:5.1f} s  {text}", end="", flush=True)
        elif now - self.last >= 1:
            self.last = now
            print(f"  {now - self.start:5.1f} s  {text}", flush=True)

    def event(self, text):
        clear = "\r\x1b[K" if self.live else ""
        print(f"{clear}  {time.monotonic() - self.start:5.1f} s  * {text}", flush=True)

    def done(self):
        if self.live:
            print("\r\x1b[K", end="", flush=True)


class Demo:
    def __init__(self, options, running):
        self.running = running
        self.folder = options.scratch / "run"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        # A socket's path has room for 107 bytes.
        self.sockets = self.folder
        self.sockets_elsewhere = len(str(self.folder)) > 80
        if self.sockets_elsewhere:
            self.sockets = pathlib.Path(tempfile.mkdtemp(prefix="tidegate-"))
        self.programs = {name: self.find(options.build, name)
                         for name in ("tidegated", "tidegate-sink", "tidegate-pub")}
        kind = {"sink": Sink, "mosquitto": Mosquitto}[options.broker]
        self.brokers = [kind("A", self.folder), kind("B", self.folder)]
        self.links = {}
        self.results = []
        self.screen = None

    @staticmethod
    def find(build, name):
        for path in [build / "daemon" / name, *sorted((build / "tools").rglob(name))]:
            if path.is_file() and os.access(path, os.X_OK) and ".libs" not in path.parts:
                return path
        raise Failure(f"{name} was not built in {build}")

    def fini(self):
        self.running.end_all()
        if self.sockets_elsewhere:
            shutil.rmtree(self.sockets, ignore_errors=True)

    def prepare(self, file, count):
        """Every message is a numbered line; returns how many the steady part has."""
        if file:
            lines = file.read_bytes().splitlines()
            self.source = str(file)
        else:
            lines = subprocess.run(["dpkg-query", "-W", "-f", "${Package}\\t${Version}\\t${binary:Summary}\\n"],
                                   check=True, stdout=subprocess.PIPE).stdout.splitlines()
            self.source = "this machine's package list"
        lines = [line for line in lines if line]
        if not lines:
            raise Failure(f"{self.source} has no lines")
        self.lines = len(lines)
        count = count or max(MESSAGES, len(lines))
        count -= count % PRODUCERS
        steady = min(count // 4, STEADY_MAX)
        steady -= steady % PRODUCERS
        self.published = [b"%d\t%s" % (number + 1, lines[number % len(lines)]) for number in range(count)]
        for part, first, last in (("steady", 0, steady), ("full", steady, count)):
            for p in range(PRODUCERS):
                with open(self.folder / f"{part}-{p + 1}.lines", "wb") as out:
                    out.writelines(line + b"\n" for line in self.published[first + p:last:PRODUCERS])
        return steady

    def start(self):
        for broker in self.brokers:
            broker.start(self.running, self.programs)
            if broker.process.poll() is not None:
                raise Failure(f"broker {broker.letter} does not start:\n{broker.process.log.read_text()}")
        config = self.folder / "tidegated.conf"
        config.write_text(CONFIG.format(sockets=self.sockets, pool=POOL, brokers=self.brokers))
        self.daemon = self.running.start([self.programs["tidegated"], "-c", config], self.folder / "tidegated.log")
        wait_for(lambda: self.daemon.poll() is not None or list(self.states().values()) == ["ready"] * 2,
                 "both links ready", 20)
        if self.daemon.poll() is not None:
            raise Failure(f"tidegated does not start:\n{self.daemon.log.read_text()}")
        self.links = self.states()

    def states(self):
        """Each broker's link's state, as `tidegatectl links` shows it."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
                s.settimeout(5)
                s.connect(str(self.sockets / "admin.sock"))
                s.sendall(b'{"cmd":"links"}\n')
                with s.makefile("rb") as lines:
                    rows = json.loads(lines.readline())["links"]
        except (OSError, ValueError):
            return {}
        return {broker.letter: row["state"] for broker in self.brokers for row in rows
                if row["broker"] == broker.address}

    def publish(self, part, rate=None):
        producers = []
        for p in range(PRODUCERS):
            argv = [self.programs["tidegate-pub"], "-s", self.sockets / "tidegate.sock", "-p", POOL,
                    "-t", f"quickstart/{p + 1}", "--json", "--quiet"]
            if rate:
                argv += ["--rate", max(1, round(rate / PRODUCERS))]
            argv.append(self.folder / f"{part}-{p + 1}.lines")
            with open(self.folder / f"{part}-{p + 1}.json", "wb") as out:
                producers.append(self.running.start(argv, self.folder / f"{part}-{p + 1}.log", stdout=out))
        return producers

    def show(self, total, frozen=None, frozen_at=0.0):
        counts = [broker.count() for broker in self.brokers]
        text = "   ".join(f"{broker.letter}: {count:>9,}" for broker, count in zip(self.brokers, counts))
        note = f"   {frozen.letter} frozen for {time.monotonic() - frozen_at:.1f} s" if frozen else ""
        self.screen.progress(f"arrived at {text}   of {total:,}{note}")
        states = self.states()
        for letter, state in states.items():
            before = self.links.get(letter)
            if state != before:
                self.screen.event(f"link to {letter}: {before} -> {state}")
        self.links = states or self.links
        return sum(counts)

    def watch(self, producers, total, steady):
        """Until the producers end. In the steady part one broker is frozen and resumed."""
        frozen = None
        frozen_at = 0.0
        did = False
        begin = time.monotonic()
        shown = 0.0
        while any(producer.poll() is None for producer in producers):
            time.sleep(0.01)
            if time.monotonic() - shown < 0.1:
                continue
            shown = time.monotonic()
            if time.monotonic() - begin > LIMIT_S:
                raise Failure(f"the producers did not end within {LIMIT_S:.0f} s")
            before = [broker.arrived for broker in self.brokers]
            arrived = self.show(total, frozen, frozen_at)
            if steady and not did and arrived >= steady * FREEZE_AT:
                # The busiest broker, so that the freeze has a visible effect.
                frozen = max(zip(self.brokers, before), key=lambda pair: pair[0].arrived - pair[1])[0]
                frozen_at = time.monotonic()
                did = True
                frozen.freeze()
                self.screen.event(f"broker {frozen.letter} is frozen (SIGSTOP to pid {frozen.process.pid})")
            if frozen and time.monotonic() - frozen_at > FROZEN_S:
                frozen.resume()
                self.screen.event(f"broker {frozen.letter} goes on (SIGCONT)")
                frozen = None
        if frozen:
            frozen.resume()
            self.screen.event(f"broker {frozen.letter} goes on (SIGCONT)")
        if steady and not did:
            raise Failure("everything was published before a broker could be frozen: give it more messages")

    def collect(self, part, producers):
        for p, producer in enumerate(producers):
            try:
                result = json.loads((self.folder / f"{part}-{p + 1}.json").read_text())
            except ValueError:
                raise Failure(f"producer {p + 1} ended with {producer.returncode}:\n{producer.log.read_text()}") from None
            result.update(part=part, producer=p + 1, status=producer.returncode)
            self.results.append(result)

    def run(self, steady):
        total = len(self.published)
        self.screen = Screen()
        self.screen.event(f"{PRODUCERS} producers publish {steady:,} messages in {STEADY_S:.0f} s")
        producers = self.publish("steady", steady / STEADY_S)
        self.watch(producers, total, steady)
        self.collect("steady", producers)
        # The resumed broker still reads messages from its socket: they arrive as duplicates.
        self.screen.event(f"now {total - steady:,} messages as fast as they go")
        begin = time.monotonic()
        producers = self.publish("full")
        self.watch(producers, total, 0)
        self.full_s = time.monotonic() - begin
        self.collect("full", producers)
        wait_for(lambda: self.show(total) >= total or self.settled(), "everything to be recorded", 30)
        self.screen.done()

    def settled(self):
        """The records stopped growing: a message missing now is lost."""
        now = sum(broker.count() for broker in self.brokers)
        if now != getattr(self, "settled_count", None):
            self.settled_count, self.settled_since = now, time.monotonic()
        return time.monotonic() - self.settled_since > 5

    def verdict(self):
        """Prints the table; returns True if nothing is missing or wrong."""
        # End the brokers in good order, so that the records are whole.
        self.running.end_all()
        published = collections.Counter(self.published)
        recorded = collections.Counter()
        per_broker = []
        for broker in self.brokers:
            lines = broker.lines()
            distinct = set(lines)
            per_broker.append((broker, len(lines), len(distinct)))
            recorded.update(lines)
        missing = [line for line in published if line not in recorded]
        strange = [line for line in recorded if line not in published]
        total = {key: sum(result[key] for result in self.results) for key in ("accepted", "delivered", "resent")}
        print()
        print(f"  {'':10} {'accepted':>10} {'delivered':>10} {'resent':>8} {'messages/s':>11} {'p50':>9} {'p99':>9} "
              f"{'p99.9':>9} {'max':>9}")
        for result in self.results:
            latency = result["latency_ns"]
            figures = " ".join(f"{duration(latency.get(key, 0)):>9}" for key in ("p50", "p99", "p99.9", "max"))
            print(f"  {result['part'] + ' ' + str(result['producer']):10} {result['accepted']:>10,} "
                  f"{result['delivered']:>10,} {result['resent']:>8,} "
                  f"{result['delivered'] / max(result['seconds'], 1e-3):>11,.0f} {figures}")
        full = sum(result["delivered"] for result in self.results if result["part"] == "full")
        print(f"  {'all':10} {total['accepted']:>10,} {total['delivered']:>10,} {total['resent']:>8,}")
        print()
        print(f"  Full speed: {full:,} messages of {PRODUCERS} processes in {self.full_s:.2f} s, "
              f"{full / self.full_s:,.0f} a second, from the start of the first process to the end of the last")
        print()
        print(f"  {'broker':10} {'arrived':>10} {'distinct':>10} {'twice':>8}")
        for broker, lines, distinct in per_broker:
            print(f"  {broker.letter:10} {lines:>10,} {distinct:>10,} {lines - distinct:>8,}   {broker.kind} at {broker.address}")
        repeats = sum(recorded.values()) - len(recorded)
        print()
        print(f"  accepted   {total['accepted']:>10,}   lines of {self.source} ({self.lines:,} lines, numbered)")
        print(f"  delivered  {total['delivered']:>10,}   each acknowledged by a broker, each completed once")
        print(f"  resent     {total['resent']:>10,}   in flight when the frozen broker was given up")
        print(f"  repeated   {repeats:>10,}   lines that reached both brokers, or one of them twice, because of that")
        print(f"  lost       {len(missing):>10,}   published, and in no broker's record")
        problems = []
        if missing:
            problems.append(f"{len(missing)} lines are missing, the first: {missing[0]!r}")
        if strange:
            problems.append(f"{len(strange)} lines arrived that nobody published, the first: {strange[0]!r}")
        if total["accepted"] != len(self.published):
            problems.append(f"{len(self.published)} lines were to be published, {total['accepted']} were accepted")
        if total["delivered"] != total["accepted"]:
            problems.append(f"{total['accepted'] - total['delivered']} messages were not delivered")
        problems += [f"{result['part']} producer {result['producer']} ended with {result['status']}"
                     for result in self.results if result["status"] != 0]
        print()
        for problem in problems:
            print(f"  FAILED: {problem}")
        if not problems:
            print(f"  Every one of {len(published):,} published lines is in the brokers' own records.")
        print(f"  Logs, records and the configuration: {self.folder}")
        return not problems


def duration(ns):
    if ns < 1e6:
        return f"{ns / 1e3:.0f} us"
    if ns < 1e9:
        return f"{ns / 1e6:.1f} ms"
    return f"{ns / 1e9:.2f} s"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--scratch", type=pathlib.Path, required=True)
    parser.add_argument("--broker", choices=("sink", "mosquitto"), default="sink")
    parser.add_argument("--messages", type=int, default=0)
    parser.add_argument("--file", type=pathlib.Path)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    running = Running()
    demo = None
    try:
        demo = Demo(options, running)
        steady = demo.prepare(options.file, options.messages)
        demo.start()
        for broker in demo.brokers:
            print(f"Broker {broker.letter}: {broker.kind} at {broker.address}, pid {broker.process.pid}")
        print(f"tidegated: pid {demo.daemon.pid}, both links proven and ready")
        demo.run(steady)
        return 0 if demo.verdict() else 1
    except Failure as failure:
        print(f"\n  FAILED: {failure}")
        return 1
    except KeyboardInterrupt:
        print("\n  interrupted")
        return 130
    finally:
        running.end_all()
        if demo:
            demo.fini()


if __name__ == "__main__":
    sys.exit(main())
