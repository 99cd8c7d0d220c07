"""python -m bench [ONLY]: measure, print the table, write results.json."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import traceback
from dataclasses import asdict, fields, replace
from pathlib import Path

from bench import api, demo, dns, events, herd, idle, lb, machine, policy, question, results, vip
from bench.estimate import estimate
from bench.figures import Area, Figure, Measured, Settings, Unknown, chosen

AREAS: tuple[Area, ...] = (
    lb.AREA,
    vip.AREA,
    policy.AREA,
    events.AREA,
    dns.AREA,
    question.AREA,
    idle.AREA,
    demo.AREA,
    api.AREA,
    herd.AREA,
)
FIGURES: dict[str, Figure] = {figure.name: figure for area in AREAS for figure in area.figures}
FILE = Path(__file__).with_name("results.json")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m bench", description="Measure what netstack claims.")
    made.add_argument("only", nargs="?", default="", help="a figure, or its first words; several with commas; `list`")
    made.add_argument("--results", type=Path, default=FILE, help="the file that is written")
    for setting in fields(Settings):
        if setting.name in ("rounds", "repeats", "seconds", "cuts", "idle_seconds"):
            kind = type(setting.default)
            made.add_argument(f"--{setting.name.replace('_', '-')}", type=kind, default=setting.default)
    return made


def run(wanted: frozenset[str], settings: Settings, path: Path) -> list[results.Result]:
    """Measure, and write each result as soon as it is known. An area that fails does not take the others with it."""
    this, found = machine.run(), []
    for area in AREAS:
        names = wanted & {figure.name for figure in area.figures}
        try:
            for measured in area.measure(names, settings) if names else ():
                if measured.figure not in names:
                    continue
                keep(measured, settings.raw)
                found.append(evaluated(measured, this))
                path.write_text(results.dump(results.merged(results.load(path), this, found, FIGURES)))
        except Exception:
            say(traceback.format_exc())
    return found


def evaluated(measured: Measured, this: results.Run) -> results.Result:
    figure = FIGURES[measured.figure]
    made = estimate(measured.samples, measured.against, statistic=figure.statistic, paired=measured.paired)
    return results.result(figure, made, this)


def keep(measured: Measured, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{measured.figure}.json").write_text(json.dumps(asdict(measured)) + "\n")


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what was made is unmade
    options = parser().parse_args()
    if options.only == "list":
        for figure in FIGURES.values():
            print(f"{figure.name:<34} {figure.unit:<7} {figure.meaning}")
        return 0
    try:
        wanted = chosen(FIGURES.values(), options.only)
    except Unknown as error:
        say(str(error))
        return 2
    chosen_settings = {name: value for name, value in vars(options).items() if name not in ("only", "results")}
    if machine.load() > 0.5:
        say(f"the machine is busy (load {machine.load():.1f}): figures taken now say little")
    found = run(wanted, replace(Settings(say=say), **chosen_settings), options.results)
    print(results.table(found, FIGURES))
    missing = [name for name in FIGURES if name in wanted - {one["figure"] for one in found}]
    if missing:
        say(f"not measured: {', '.join(missing)}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
