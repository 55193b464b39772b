"""Shell completion offers each command and option that the programs have, in bash, fish and zsh."""

import os
import pathlib
import re
import shutil
import subprocess

import pytest

from harness import program

ROOT = pathlib.Path(__file__).parents[2]
COMPLETION = ROOT / "tools" / "completion"
PROGRAMS = ("tidegatectl", "tidegated", "tidegate-pub", "tidegate-bench")
BASH = """
. /usr/share/bash-completion/bash_completion
. "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
_tidegate
printf '%s\\n' "${COMPREPLY[@]}"
"""
FISH = "source $argv[1]; complete -c $argv[2] -f -a '(__tidegate_words)'; complete -C $argv[3]"
# zsh shows matches on a terminal only: here its function for them prints the words.
ZSH = """
_describe() { [[ $1 != -o ]] || shift; local -a all=(${(P)2}); print -rl -- ${all%%:*} }
_files() { }
complete() { local file=$1; shift; local -a words=("$@"); local CURRENT=$# PREFIX=${@[-1]}; source $file }
complete "$@"
"""


def environment():
    folders = sorted({str(pathlib.Path(program(name)).parent) for name in PROGRAMS})
    return dict(os.environ, PATH=":".join(folders + [os.environ["PATH"]]), TERM="dumb")


def by_bash(*words):
    done = subprocess.run(["bash", "-c", BASH, "bash", COMPLETION / "tidegate.bash", *words], env=environment(),
                          capture_output=True, text=True, timeout=20, check=True)
    return set(done.stdout.split())


def by_fish(*words):
    done = subprocess.run(["fish", "-c", FISH, COMPLETION / "tidegate.fish", words[0], " ".join(words)],
                          env=environment(), capture_output=True, text=True, timeout=20, check=True)
    return {line.split("\t")[0] for line in done.stdout.splitlines()}


def by_zsh(*words):
    done = subprocess.run(["zsh", "-f", "-c", ZSH, "zsh", COMPLETION / "_tidegate", *words], env=environment(),
                          capture_output=True, text=True, timeout=20, check=True)
    return set(done.stdout.split())


SHELLS = [pytest.param(by_bash, id="bash", marks=pytest.mark.skipif(
              not os.path.exists("/usr/share/bash-completion/bash_completion"), reason="no bash-completion")),
          pytest.param(by_fish, id="fish", marks=pytest.mark.skipif(not shutil.which("fish"), reason="no fish")),
          pytest.param(by_zsh, id="zsh", marks=pytest.mark.skipif(not shutil.which("zsh"), reason="no zsh"))]


def commands():
    """Of tidegatectl, from the table that it is made of."""
    return set(re.findall(r'^X\(([a-z_-]+), "', (ROOT / "tools/ctl/commands.def").read_text(), re.M))


def options(*words):
    text = subprocess.run([program(words[0]), *words[1:], "--help"], capture_output=True, text=True, timeout=20,
                          check=True).stdout
    return set(re.findall(r"^ {2,}(?:-., )?(--[a-z0-9-]+)", text, re.M))


@pytest.mark.parametrize("shell", SHELLS)
def test_every_command_of_the_table_is_offered(shell):
    assert commands() and {name.replace("_", "-") for name in commands()} <= shell("tidegatectl", "")


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("words", [("tidegatectl",), ("tidegated",), ("tidegate-pub",), ("tidegate-bench", "throughput")],
                         ids=" ".join)
def test_every_option_of_help_is_offered(shell, words):
    assert options(*words) and options(*words) == shell(*words, "--")


@pytest.mark.skipif(not os.path.exists("/usr/share/bash-completion/bash_completion"), reason="no bash-completion")
def test_bash_offers_values_and_a_commands_own_options():
    assert by_bash("tidegated", "--log-level", "") == {"error", "warn", "info", "debug"}
    assert "mosquitto" in by_bash("tidegate-bench", "throughput", "--start", "")
    assert "--follow" in by_bash("tidegatectl", "-s", "x", "events", "--")
    assert "--follow" not in by_bash("tidegatectl", "lanes", "--")
    assert by_bash("tidegated", "-c", "/etc/hostn") == {"/etc/hostname"}
