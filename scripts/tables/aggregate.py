"""A table from records of runs: rows of equal settings, means and deviations over trials, paired differences."""
import itertools
import os
import statistics
from dataclasses import dataclass, replace

import numpy as np

from helper.record import published
from helper.record.records import LOSS, Record
from helper.util.errors import printable
from scripts.tables.plan import default_recipe
from scripts.tables.presets import remarks
from scripts.tables.runner import Logs
from scripts.tables.words import setting

# Said row by row; rows that differ in nothing else but where the teacher's outputs come from are compared with each
# other.
BY_ROW = {*LOSS, "kd_T", "init_epochs"}
SOURCE = {"teacher_source", "cache_dtype"}
RESAMPLES, SEED, LEVEL = 10_000, 0, 95


@dataclass(frozen=True)
class Row:
    """The finished runs of one pair and method with equal settings, by trial, and what is missing of them.

    variant: the settings of a grid in words
    missing: trial -> what is known of it, in words
    name: the method's, with the settings that tell it from other rows of the same method and pair, and only those
    """

    pair: str
    method: str
    variant: str
    identity: dict
    records: tuple[Record, ...]
    missing: dict[str, str]
    name: str = ""

    def values(self, epoch: str) -> list[float]:
        """The test accuracies in percent at the 'last' or the 'best' epoch, a trial an element."""
        return [record.final[epoch]["top1"] for record in self.records]

    @property
    def failed(self) -> bool:
        return any(state.startswith("failed") for state in self.missing.values())


def rows_of(records: list[Record], save_dir: str, asked: list[dict] | None = None) -> list[Row]:
    """The rows of these runs: in the order of `asked`, or by pair, method and settings.

    asked: the runs of a table ({"name", "folder", "pair", "method", "variant", "trial"}), finished or not, and no
        others; None: all finished runs.
    """
    by_folder, logs = {os.path.relpath(record.folder, save_dir): record for record in records}, Logs(save_dir)
    groups: dict[tuple, dict[tuple, dict[str, Record]]] = {}
    missing: dict[tuple, dict[str, str]] = {}
    for run in _finished(by_folder) if asked is None else asked:
        record, place = by_folder.get(run["folder"]), (run["pair"], run["method"], run["variant"])
        alike, lost = groups.setdefault(place, {}), missing.setdefault(place, {})
        if record is not None and record.result:
            # The same trial twice is one run's result twice: of the labels alone with two teachers.
            alike.setdefault(_ordered(record.identity), {}).setdefault(run["trial"], record)
        else:
            lost[run["trial"]] = _state(record, logs.failed(run["name"]))
    rows = []
    for place, alike in groups.items():
        for _, trials in sorted(alike.items()) or [((), {})]:  # a row of which nothing is there is a row all the same
            found = tuple(trials[trial] for trial in sorted(trials, key=_natural))
            rows.append(Row(*place, found[0].identity if found else {}, found, missing[place]))
    return [replace(row, name=_name(row, rows)) for row in rows]


def _name(row, rows):
    same = [other for other in rows if (other.pair, other.method) == (row.pair, row.method)]
    keys = [key for key in row.identity if len({repr(other.identity.get(key)) for other in same if other.records}) > 1]
    differ = ", ".join(setting(key, row.identity[key]) for key in keys) or row.variant
    return f"{row.method} ({differ})" if differ else row.method


def _finished(by_folder):
    """What `asked` says of all finished runs; one on the labels alone stands for every pair of its student."""
    finished = {folder: record for folder, record in by_folder.items() if record.result}
    runs = []
    for folder, record in finished.items():
        pairs = {record.pair} if record.method != "ce" else {
            other.pair for other in finished.values() if other.settings["model_s"] == record.settings["model_s"]}
        runs += [{"folder": folder, "pair": pair, "method": record.method, "variant": "", "trial": record.trial}
                 for pair in pairs]
    usual = {name: i for i, name in enumerate(["ce", *published.TABLES["methods"]["methods"]])}
    return sorted(runs, key=lambda run: (run["pair"], usual.get(run["method"], len(usual)), run["method"],
                                         run["folder"]))


def _ordered(identity):
    """As a key that sorts numbers as numbers."""
    return tuple((key, *_natural(value)) for key, value in sorted(identity.items()))


def _natural(value):
    try:
        return 0, float(int(value) if isinstance(value, str) else value), ""
    except (TypeError, ValueError):
        return 1, 0.0, str(value)


def _state(record, reason):
    if reason is not None:
        return f"failed: {reason}"
    if record is None:
        return "not begun"
    done = sum(line["phase"] == "train" for line in record.log)
    return f"unfinished, {done} of {record.settings['epochs']} epochs"


def spread(values: list[float]) -> dict:
    """mean (None for no value), sample standard deviation (None for fewer than two), n, values."""
    return {"mean": statistics.fmean(values) if values else None,
            "std": statistics.stdev(values) if len(values) > 1 else None, "n": len(values), "values": values}


def compared(row: Row) -> dict | None:
    """The published figure of a row's place, and what the row's is more than that: last with last, best with best;
    where it is not stated which, the last."""
    figure = published.figure(row.identity["dataset"], row.pair, row.method)
    if figure is None:
        return None
    ours = statistics.fmean(row.values("best" if figure.epoch == "best" else "last"))
    return figure._asdict() | {"difference": ours - figure.top1}


def table(title: str, rows: list[Row], with_significance: bool) -> dict:
    """Everything that a report shows, as plain data: what report.json holds."""
    full = [row for row in rows if row.records]
    records = [record for row in full for record in row.records]
    common = _shared(full)
    blocks = [_pair(pair, [row for row in rows if row.pair == pair], common)
              for pair in dict.fromkeys(row.pair for row in rows)]
    figures = [figure for block in blocks for figure in (
        block["teacher_published"], *(row["published"] for row in block["rows"])) if figure]
    return {
        "title": printable(title),
        "cautions": cautions(full),
        "pairs": blocks,
        "settings": common,
        "sources": {key: published.SOURCES[key] for key in sorted({figure["source"] for figure in figures})},
        "significance": significance(full) if with_significance else None,
        "versions": {"torch": sorted({record.torch for record in records}),
                     "commit": sorted({record.commit for record in records if record.commit})},
        "commands": list(dict.fromkeys(record.command for record in records)),
    }


def _pair(pair, rows, common):
    full = [row for row in rows if row.records]
    own = {key: value for key, value in _shared(full).items() if key not in common}
    figure = published.figure(full[0].identity["dataset"], pair, "teacher") if full else None
    return {
        "pair": pair,
        "settings": own,
        "teacher_top1": _teacher(full),
        "teacher_published": figure and figure._asdict(),
        "rows": [{
            "method": row.method,
            "name": row.name,
            "settings": {key: value for key, value in row.identity.items() if key not in common | own},
            "trials": [record.trial for record in row.records],
            "last": spread(row.values("last")),
            "best": spread(row.values("best")),
            "published": compared(row) if row.records else None,
            "remarks": remarks(row.records[0].settings, pair) if row.records else [],
            "missing": row.missing,
            "failed": row.failed,
            "runs": [record.name for record in row.records],
        } for row in rows],
    }


def _teacher(rows):
    """The measured accuracies of a pair's teacher: {"top1", "how": its arithmetic, in words}, those in float32 first.

    The same weights differ in the hundredths from one arithmetic to another.
    """
    found: dict[float, set[str]] = {}
    for record in (record for row in rows for record in row.records if row.method != "ce"):
        cached = record.settings.get("teacher_source") == "cache"
        how = "cached" if cached else "live"
        how += f" in {'bfloat16' if record.settings.get('amp') == 'bf16' and not cached else 'float32'}"
        how += f" on {record.settings.get('device')}"
        found.setdefault(record.final["teacher_top1"], set()).add(how)
    accuracies = [{"top1": top1, "how": " and ".join(sorted(ways))} for top1, ways in found.items()]
    return sorted(accuracies, key=lambda accuracy: ("float32" not in accuracy["how"], accuracy["top1"]))


def _shared(rows):
    """The settings that all rows have alike; those of the loss are always said row by row. The labels alone lack those
    of the teacher, which is no difference."""
    of_all = [row for row in rows if row.method != "ce"] or rows
    return {key: value for key, value in (of_all[0].identity.items() if of_all else ()) if key not in BY_ROW
            and all(key in row.identity for row in of_all)
            and all(row.identity.get(key, value) == value for row in rows)}


def cautions(rows: list[Row]) -> list[str]:
    """What a reader must know before the figures: in which respect they are no reproduction."""
    said, usual = [], default_recipe().epochs
    epochs = sorted({row.identity["epochs"] for row in rows} - {usual})
    datasets = sorted({row.identity["dataset"] for row in rows} - {published.DATASET})
    if datasets:
        said.append(f"On {', '.join(datasets)}, for which nothing is published: no reproduction of any table.")
    if epochs:
        said.append(f"Trained for {', '.join(map(str, epochs))} epochs; the published schedule has {usual}: no "
                    "reproduction of the published figures.")
    if any(row.identity["warm_up"] > 1 for row in rows) and not datasets:
        said.append("With a warm-up of the learning rate, as in IKD's code; the benchmark that most published figures "
                    "are of has none.")
    trials = min((len(row.records) for row in rows), default=0)
    if rows and trials < 3:
        said.append(f"Some rows have {trials} trial{'s' * (trials != 1)}: published figures are means of 3 to 5.")
    return said


def significance(rows: list[Row]) -> list[dict]:
    """Paired differences of the last accuracy between methods of one pair, over the trials that both have.

    interval: of the mean, by the percentile bootstrap over trials; None for fewer than 2
    """
    found = []
    for row, other in itertools.combinations(rows, 2):
        shared = (set(row.identity) & set(other.identity)) - BY_ROW - SOURCE
        mine, theirs = ({r.trial: r.final["last"]["top1"] for r in x.records} for x in (row, other))
        common = [trial for trial in mine if trial in theirs]
        if common and row.pair == other.pair and all(row.identity[key] == other.identity[key] for key in shared):
            differences = np.array([theirs[trial] - mine[trial] for trial in common])
            found.append({"pair": row.pair, "method": other.name, "against": row.name, "trials": common,
                          "mean": float(differences.mean()), "interval": bootstrap(differences)})
    return found


def bootstrap(values: np.ndarray) -> list[float] | None:
    """The percentile interval of the mean at LEVEL percent, from RESAMPLES resamples drawn with SEED."""
    if len(values) < 2:
        return None
    draws = np.random.default_rng(SEED).integers(0, len(values), (RESAMPLES, len(values)))
    outside = (100 - LEVEL) / 2
    return [float(x) for x in np.percentile(values[draws].mean(1), [outside, 100 - outside])]
