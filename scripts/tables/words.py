"""What a report's figures and settings are in words, the same in all its formats."""
from helper.record import published
from helper.util.errors import printable

# The short flags, as papers and commands write them.
FLAGS = {"gamma": "-r", "alpha": "-a", "beta": "-b"}


def value(row: dict, epoch: str) -> str:
    """'70.66 ± 0.24' at the 'last' or 'best' epoch, '70.66' for one trial, 'failed' or 'missing' for none."""
    spread = row[epoch]
    if spread["n"] == 0:
        return "failed" if row["failed"] else "missing"
    return f"{spread['mean']:.2f}" + (f" ± {spread['std']:.2f}" if spread["std"] is not None else "")


def teacher_value(block: dict) -> str:
    """The teacher's accuracy, in float32 where it was measured in several arithmetics."""
    return f"{block['teacher_top1'][0]['top1']:.2f}" if block["teacher_top1"] else "—"


def figure_words(figure: dict) -> str:
    return f"{figure['top1']:.2f} ({figure['source']})"


def settings_words(settings: dict) -> str:
    """'epochs 20, batch_size 64, ...', by the flags' names; without what the row's name says."""
    return ", ".join(setting(key, value) for key, value in settings.items()
                     if key not in ("distill", "teacher_top1") and (key, value) != ("avg", 0) and value is not None)


def arrow(text: str) -> str:
    return text.replace("->", " → ")


def setting(key: str, value) -> str:
    """'a 0.9', 'lr_decay_epochs 150 180 210', 'compile on': a setting by its flag's name."""
    if isinstance(value, list):
        text = " ".join(map(str, value))
    elif isinstance(value, bool):
        text = "on" if value else "off"
    else:
        text = f"{value:g}" if isinstance(value, float) else str(value)
    return printable(f"{FLAGS.get(key, key).lstrip('-')} {text}")


def settings_rows(content: dict) -> list[list[str]]:
    """Row's name, its pairs, and what is not the same in all rows; rows of equal settings in one line. First what all
    rows of a pair have."""
    pairs: dict[tuple[str, str], list[str]] = {}
    for block in content["pairs"]:
        if block["settings"]:
            pairs.setdefault(("all", settings_words(block["settings"])), []).append(arrow(block["pair"]))
    for block in content["pairs"]:
        for row in block["rows"]:
            if row["runs"]:
                pairs.setdefault((row["name"], settings_words(row["settings"]) or "—"), []).append(arrow(block["pair"]))
    return [[name, "all" if len(found) == len(content["pairs"]) else ", ".join(found), words]
            for (name, words), found in pairs.items()]


def sources(content: dict) -> list[str]:
    """Where the published figures are from, and how they are compared."""
    if not content["sources"]:
        return []
    return [*(f"{key}: {source['what']}; epoch: {source['figure']}." for key, source in content["sources"].items()),
            "The difference is ours minus the published figure: last with last, best with best; the last where a "
            "source does not state which.", *published.REMARKS]
