"""Results of the study of blocks that meet their first gradient late: docs/late.md."""

from __future__ import annotations

import math

from research.late_blocks import results
from research.late_blocks.results import BASE
from research.late_blocks.situations import SITUATIONS
from research.late_blocks.ways import WAYS
from scripts.tables.markdown import table
from sgd_sai.lab.summary import cells


def scales() -> str:
    """How much is capped in each situation, and how far the ways' scales are from those as it is."""
    ways = [way for way in WAYS if way not in (BASE, "adamw")]
    rows = [["situation", "elements capped", "largest G_snr / maximum", *(WAYS[way] for way in ways)]]
    for name, situation in SITUATIONS.items():
        row = results.scales(results.rows(name, situation.steps))
        if row:
            apart = [f"{row['apart'][way]:.2f} ×" for way in ways]
            rows.append([situation.title, f"{row['capped']:.0%}", f"{row['ratio']:.2f}", *apart])
    return table(*rows)


def proof() -> str:
    """The held-out loss of each way on new seeds, and the paired differences from "as it is"."""
    rows = [["situation", "way", "lr", "held-out loss", "minus that as it is", "untuned, one seed"]]
    for name, situation in SITUATIONS.items():
        of = results.rows(name, situation.steps)
        base, search = results.proven(of, BASE), results.searched(of, BASE)
        for way, label in WAYS.items():
            if runs := results.proven(of, way):
                tried = results.searched(of, way)
                apart, untuned = cells.MISSING, cells.MISSING
                if way != BASE:
                    apart = _shown(results.against(runs, base), sign="+")
                    lr = results.best(search)
                    untuned = f"{tried[lr] - search[lr]:+.3f}" if lr in tried else cells.MISSING
                title = f"{situation.title}, {len(runs)} seeds" if way == BASE else ""
                chosen = f"{results.best(tried):.2g}"
                rows.append(
                    [title, label, chosen, _shown([*runs.values()]), apart, untuned.replace("-", "−")]
                )
    return table(*rows)


def _shown(values: list[float], sign: str = "") -> str:
    """Mean (95 % interval), or how many diverged."""
    diverged = sum(not math.isfinite(value) for value in values)
    if diverged:
        return f"{diverged} of {len(values)} diverged"
    mean, interval = results.of_mean(values)
    ends = f" ({interval[0]:{sign}.3f} to {interval[1]:{sign}.3f})" if interval else ""
    return f"{mean:{sign}.3f}{ends}".replace("-", "−")
