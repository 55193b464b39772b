"""No producer can hurt another: one table of bad behaviours, each beside one honest neighbour in the same pool.

The bad one is a process of its own, of another user (65534 where the tests run as root). The honest one publishes 500
messages a second all the time. Every row is run with one broker and with two, real ones where a real one behaves
so, and tidegate-sink otherwise. The expected service:

  the neighbour   its rate, and delay; every message delivered: nothing rejected, unknown or expired
  the bad one     exactly one completion a message, and a reason for each that was not delivered

A second table (neighbour_turns.py) has those that make the daemon work, wait or hold things by other means than messages.

The short form counts messages and compares its figures with bounds that a busy machine keeps. It leaves rows out, which
TG_NEIGHBOURS_ALL=1 adds. With TG_FULL=1 a row takes a minute (TG_NEIGHBOURS_S seconds), must keep the promised limits,
and its figures go into the file that TG_NEIGHBOURS names (daemon/doc/neighbours.md's tables). Rows run several at a time,
each with brokers and a daemon of its own, but for
those whose neighbour publishes as fast as it can. One row: `pytest tests/integration/test_neighbours.py -k mqtt5-slashes-1`.
"""

import concurrent.futures
import os

import pytest

import neighbour_turns
import neighbours as n
from harness import FULL, Sink
from load import Arrivals
from neighbour_rows import RABBIT_RATE, ROWS, At, Rabbits
from neighbours import BadProcess, Neighbour

WIDTH = int(os.environ.get("TG_NEIGHBOURS_WIDTH", "4" if FULL else "8"))
RABBIT_WIDTH = 3  # of them, with the RabbitMQ that they share


class Runner:
    """Runs rows, and with the one asked for those that are selected after it."""

    def __init__(self):
        self.rabbits = Rabbits()
        self.results = {}

    def result(self, row, brokers, selected):
        if (row.name, brokers) not in self.results:
            self.run(self.batch(row, brokers, selected))
        return self.results[row.name, brokers]

    def batch(self, row, brokers, selected):
        if row.rate == 0:
            return [(row, brokers)]
        names = [(one.name, count) for one, count in selected]
        steady = [one for one in selected[names.index((row.name, brokers)):]
                  if one[0].rate != 0 and (one[0].name, one[1]) not in self.results]
        with_rabbit = [one for one in steady if one[0].rate == RABBIT_RATE][:RABBIT_WIDTH]
        return [one for one in steady if one[0].rate != RABBIT_RATE or one in with_rabbit][:WIDTH]

    def run(self, batch):
        with concurrent.futures.ThreadPoolExecutor(WIDTH) as pool:
            runs = {(row.name, brokers): pool.submit(self.one, row, brokers) for row, brokers in batch}
        self.results.update(runs)

    def one(self, row, brokers):
        """The row's lines, and None or what is wrong."""
        box, lines, d = n.OpenBox(), [], None
        try:
            grounds = [row.ground(At(box, number, self.rabbits)) for number in range(brokers)]
            d = n.Daemon(box, [row.pool(box, grounds)]).start()
            run_row(box, d, row, grounds, lines)
            return lines, None
        except Exception as wrong:  # pylint: disable=broad-except
            lines += d.process.text()[-4000:].splitlines() if d and d.process else []
            return lines, wrong
        finally:
            box.fini()


def run_row(box, d, row, grounds, lines):
    neighbour = Neighbour(box, d, row.topic, rate=row.rate)
    alone, beside, bads = neighbour.run(lambda: [BadProcess(box, d, bad, f"bad{at}") for at, bad in enumerate(row.bad)])
    figures = neighbour.finish(alone, beside)
    for bad in bads:
        bad.finish()
    lines.append(n.line_of(row.name, row.protocol, len(grounds), figures, n.all_outcomes(bads)))
    for words, count in sum((bad.words() for bad in bads), n.collections.Counter()).most_common(4):
        lines.append(f"    {count} x {words}")
    check_neighbour(row, figures)
    for bad in bads:
        check_bad(row, bad)
    for ground in grounds:
        if isinstance(ground, Sink):
            disorder = Arrivals().add_sink(ground).disorder
            assert not disorder or row.settings.get("order") == "none", disorder[:5]
    d.wait_no_lanes(30)
    assert d.stop() == 0


def check_neighbour(row, f):
    outcomes = dict(f.outcomes)
    unknown = outcomes.pop("unknown", 0)
    assert unknown <= row.lost and set(outcomes) == {"delivered"}, f"the neighbour's: {f.outcomes}"
    promised = n.SHARE * row.rate if row.rate else n.SHARE_AT_FULL_SPEED * f.alone
    assert f.beside >= promised, f"the neighbour had {f.beside:.0f} a second, {f.alone:.0f} alone"
    assert not row.rate or f.p99 < n.P99_MS, f"the neighbour's p99 was {f.p99:.1f} ms"


def check_bad(row, bad):
    ends = bad.outcomes()
    assert ends and set(ends) <= row.ends | {"refused"}, f"the bad one's: {ends}"
    assert not bad.wordless(), f"without a word: {bad.wordless()[:3]}"
    good = bad.outcomes("good")
    assert not good or set(good) == {"delivered"}, f"the bad one's own good messages: {good}"


def report(capsys, head, table):
    """Shows a row, and appends its figures to the long form's file, under the head of its table."""
    with capsys.disabled():
        print("\n" + "\n".join(table))
    if not FULL or not os.environ.get("TG_NEIGHBOURS"):
        return
    with open(os.environ["TG_NEIGHBOURS"], "a+", encoding="utf-8") as file:
        file.seek(0)
        if head not in file.read():
            file.write("\n" + head + "\n")
        file.write("".join(line + "\n" for line in table if line[0] == "|"))


UPGRADE_HEAD = ("| longest wait over an upgrade, ms | … of a daemon with 40 full lanes of another's, ms | the neighbour's |\n"
                "|---:|---:|---|")


@pytest.fixture(scope="module")
def runner():
    runner = Runner()
    yield runner
    runner.rabbits.fini()


CASES = [(row, brokers) for row in ROWS for brokers in (1, 2) if FULL or os.environ.get("TG_NEIGHBOURS_ALL")
         or brokers in row.short]


@pytest.mark.long
@pytest.mark.parametrize("row, brokers", [pytest.param(*case, id=f"{case[0].name}-{case[1]}") for case in CASES])
def test_bad_messages_cost_their_own_lane_alone(runner, row, brokers, request, capsys):
    here = request.node.originalname
    selected = [(item.callspec.params["row"], item.callspec.params["brokers"]) for item in request.session.items
                if getattr(item, "originalname", "") == here]
    lines, wrong = runner.result(row, brokers, selected).result()
    table = [line for line in lines if line[0] in "| "]
    report(capsys, n.HEAD, table)
    print("\n".join(lines[len(table):]))
    if wrong is not None:
        raise wrong


@pytest.mark.long
@pytest.mark.parametrize("row", neighbour_turns.ROWS, ids=lambda row: "-".join(map(str, row.argv)))
def test_hostile_clients_leave_an_honest_one_its_round_trips(row, capsys):
    line, held = neighbour_turns.run(row)
    report(capsys, neighbour_turns.HEAD, [line])
    assert held, line


@pytest.mark.long
def test_upgrade_beside_full_lanes_stops_nobody(capsys):
    alone, beside, outcomes = neighbour_turns.upgrades_beside_full_lanes()
    report(capsys, UPGRADE_HEAD, [f"| {alone:.0f} | {beside:.0f} | {n.told(outcomes)} |"])
    assert set(outcomes) == {"delivered"}, outcomes
    assert beside <= (alone + neighbour_turns.WORST_MS if FULL else alone + 3000)
