"""What is left of the daemon for an honest client beside one that takes all it can get: round trips alone,
beside a process that is only busy, and beside each kind of greed and of lies in shared memory.

Two processors are shared by the sink, the daemon, the honest client and who disturbs it, so that anything busy
costs something: each kind is compared, turn by turn, with a process that spins; one that publishes, with one that
does so by the rules. With TG_FULL=1 the turns are
long and the table's worst ratio is held to what is promised; the short form only catches a daemon that stands
still, on any machine."""

import re
import statistics

import pytest

from harness import FULL, Process, Sink, pool, program

TURNS, TURN_MS = (5, 2000) if FULL else (3, 200)
PROMISED = 0.8 if FULL else 0.1
AGAIN = 3  # what falls short is measured again: what else the machine does changes, and greed does not
MIB = 1 << 20

GREED = {
    "opens 64 MiB lanes": ("greedy", "open", 64 * MIB),
    "opens 256 KiB lanes": ("greedy", "open", 256 << 10),
    "opens 16 KiB lanes": ("greedy", "open", 16 << 10),
    "hands back 64 MiB lanes": ("greedy", "return", 64 * MIB),
    "hands back 256 KiB lanes": ("greedy", "return", 256 << 10),
    "connects and hangs up": ("greedy", "connect"),
    "asks nonsense": ("greedy", "ask"),
    "takes no completions": ("greedy", "unread"),
    "random bytes": ("hostile", "bytes"),
    "random cursors": ("hostile", "words"),
    "lying records": ("hostile", "records"),
    "punched holes": ("hostile", "holes"),
    "doorbell flood": ("hostile", "flood"),
    "doorbell flood of 64 clients": ("greedy", "ring", 64),
}
# Who publishes as fast as he can by the rules has a share of the daemon and of the broker: these get no more.
PUBLISHERS = {
    "publishes and never takes a completion, on new lanes all the time": ("greedy", "discard"),
    "publishes what has expired": ("greedy", "expired", 1),
}
BUSY, PUBLISHER = ("greedy", "spin", 100), ("greedy", "publish", 1)


class Disturber:
    def __init__(self, box, d, kind, number):
        who, mode, *argument = kind
        argv = [program(who), d.socket, "events", mode, *argument] if who == "greedy" else \
            [program(who), d.socket, "events", number, 1 << 60, mode]
        self.process = Process(box, f"{who}-{mode}-{number}", argv)

    def __enter__(self):
        self.process.freeze()
        return self

    def __exit__(self, *_):
        self.process.kill()


def round_trips(box, d):
    """Of the honest client, a second."""
    result = box.run(program("honest"), d.socket, "events", TURN_MS, deadline_s=TURN_MS / 1000 + 120)
    assert result.returncode == 0, result.stderr
    number, us, longest = map(int, re.match(r"round_trips=(\d+) us=(\d+) longest_us=(\d+)", result.stdout).groups())
    return number * 1e6 / us, longest


def beside(box, d, disturber):
    disturber.process.thaw()
    try:
        return round_trips(box, d)
    finally:
        assert disturber.process.alive(), disturber.process.text()
        disturber.process.freeze()


def compare(box, d, kind, number, measure):
    """Alone, beside the measure, beside this kind: medians; and of the pairs' ratio, and the longest wait."""
    alone, neutral, greedy = [], [], []
    with Disturber(box, d, measure, number) as busy, Disturber(box, d, kind, number) as bad:
        for _ in range(TURNS):
            alone.append(round_trips(box, d))
            neutral.append(beside(box, d, busy))
            greedy.append(beside(box, d, bad))
    ratio = statistics.median(g[0] / n[0] for g, n in zip(greedy, neutral))
    return (*(statistics.median(x[0] for x in some) for some in (alone, neutral, greedy)), ratio,
            max(g[1] for g in greedy))


def row(name, alone, neutral, greedy, ratio, longest):
    return f"| {name} | {alone:,.0f} | {neutral:,.0f} | {greedy:,.0f} | {ratio:.2f} | {longest / 1000:.1f} ms |"


HEAD = ("| beside one that … | alone | beside the measure | beside it | ratio | longest wait |\n"
        "|---|---|---|---|---|---|")


@pytest.mark.long
def test_honest_client_keeps_its_share(box, daemon, capsys):
    sink = Sink(box, record=False).start()
    d = daemon(pool([sink]), limits={"ring_bytes": 64 * MIB})
    lines, worst = [HEAD], {}
    for number, (name, kind) in enumerate({**GREED, **PUBLISHERS}.items()):
        measure = BUSY if name in GREED else PUBLISHER
        figures = compare(box, d, kind, number + 1, measure)
        for again in range(1, AGAIN):
            if figures[3] >= PROMISED:
                break
            figures = max(figures, compare(box, d, kind, number + 1 + 100 * again, measure), key=lambda f: f[3])
        lines.append(row(name, *figures))
        worst[name] = figures[3]
    with capsys.disabled():
        print("\nround trips a second of an honest client, load "
              + open("/proc/loadavg").read().split()[0] + "\n" + "\n".join(lines))
    assert min(worst.values()) >= PROMISED, "\n".join(lines)
    d.wait_no_lanes(60)
    assert d.stop() == 0
