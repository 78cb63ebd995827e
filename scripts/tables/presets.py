"""The weights that a table gives each method and pair, and what of a run's weights is not published."""
from typing import Any

from distiller_zoo import METHODS
from helper.record import published
from helper.record.records import label
from helper.util.errors import UsageError
from scripts.tables.words import setting

CE = {"distill": "kd", "gamma": 1.0, "alpha": 0.0}


def weights(spec: str, pair: str) -> dict[str, Any]:
    """'dkd+IKD' -> its options for this pair, by name.

    spec: METHOD, or ce for cross-entropy alone; then +KD for the KD loss that methods on features can add, and +IKD
    Raises UsageError.
    """
    added = [part for part in ("KD", "IKD") if part in spec.split("+")]
    base = spec.removesuffix("".join(f"+{part}" for part in added))
    variants = [name for name, row in published.WEIGHTS[published.DATASET].items() if "distill" in row]
    if base not in ("ce", *METHODS, *variants):
        raise UsageError(f"'{spec}' is not a method: give ce, {', '.join(variants)} or one of {', '.join(METHODS)}, "
                         "and after it +KD, +IKD or +KD+IKD if wanted")
    options = preset(base, pair)[0]
    if "KD" in added:
        able = [name for name, method in METHODS.items() if method.alpha_adds_kd and method.alpha is not None]
        if base not in able:
            raise UsageError(f"'{spec}': KD can be added to {', '.join(able)}")
        options = options | published.ADDED_KD["set"]
    return _without_ramp(options) | published.IKD["set"] if "IKD" in added else options


def preset(base: str, pair: str) -> tuple[dict[str, Any], list[str]]:
    """The options of a method for a pair, and in words what of them is not published.

    base: ce, a method or a variant such as kd+ls; what published.json does not name has its class's defaults
    """
    known = published.WEIGHTS[published.DATASET].get(base, {})
    found = CE if base == "ce" else published.weights(published.DATASET, base, pair)
    if found is not None:
        return {"distill": known.get("distill", base)} | found, []
    elsewhere = [f"{base}'s weights are published for other pairs: its defaults are used"] if known else []
    if "distill" in known:
        return {"distill": known["distill"]} | known["set"], elsewhere
    method = METHODS[base]
    options = {"distill": base, "gamma": 1.0}
    options |= {"alpha": 0.0} if method.alpha_adds_kd and method.alpha is not None else {}
    options |= {} if method.beta is None else {"beta": method.beta}
    return options, elsewhere or ([] if method.beta_published else [f"no weight of {base} is published"])


def _without_ramp(options):
    """As IKD's code trains every method; mdistiller's rows have its ramp."""
    return {key: value for key, value in options.items() if key != "ramp"}


def remarks(settings: dict, pair: str) -> list[str]:
    """What of a run's weights is not the published choice, in words, from its settings; [] off CIFAR-100, where
    nothing is published at all."""
    name = label(settings)
    base = "+".join(part for part in name.split("+") if part not in ("KD", "IKD"))
    if settings["dataset"] != published.DATASET or settings["distill"] not in METHODS:
        return []
    # Of a method that has weights of its own here, and not with standardised logits, there is nothing to compare.
    own = base if base in ("ce", *METHODS, *published.WEIGHTS[published.DATASET]) else settings["distill"]
    options, said = preset(own, pair)
    options = _without_ramp(options) if settings.get("avg") else options
    if "+KD" in name:
        options = options | published.ADDED_KD["set"]
        if base not in published.ADDED_KD["methods"]:
            said.append("the weight of the added KD is not published for this method")
    other = [f"{setting(key, settings[key])} instead of {value:g}"
             for key, value in options.items() if not isinstance(value, str) and settings.get(key) not in (None, value)]
    if other:
        said.append("not the preset: " + ", ".join(other))
    if settings.get("avg"):
        own_ikd = {key: settings[key] for key in published.IKD["set"]}
        if own_ikd != published.IKD["set"] or [pair, base] not in published.IKD["published"]:
            said.append(f"IKD's avg {settings['avg']:g} and intra_T {settings['intra_T']:g} are not published for "
                        f"{base} on this pair")
    return said
